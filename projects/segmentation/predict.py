"""Masks for a folder of images, also as a command::

mltrain pull RUN_ID --to model
python -m projects.segmentation.predict model images masks
"""

import argparse
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from mltrain.errors import DataError
from projects.pulled import weights_in
from projects.segmentation.dataset import network_input
from projects.segmentation.framing import Size, other_scale, windowed
from projects.segmentation.model import SegmentationNet
from projects.segmentation.pairing import pictures_in
from projects.segmentation.pixels import UnreadablePixels, read_image
from projects.segmentation.values import COLOUR

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmenter:
    """Applies a trained network to pictures of any size."""

    net: SegmentationNet
    size: Size | None = None
    """(H, W) to which pictures are resized for the network. If ``None``, they are scaled as in training."""
    threshold: float = 0.5
    """Foreground is where its probability is above this, from 0 to 1. Of several classes the most likely is predicted."""

    @classmethod
    def load(cls, folder: Path, threshold: float = 0.5) -> "Segmenter":
        """Load the model that ``mltrain pull`` wrote to a folder.

        Raises:
            DataError: the folder holds no weights, or those of another network.
        """
        weights = weights_in(folder)
        try:
            net = SegmentationNet.of(weights)
        except RuntimeError as error:
            raise DataError(
                f"{folder} holds no segmentation model: {error}. Try: mltrain pull RUN_ID --to {folder}"
            ) from None
        return cls(net, None, threshold)

    @torch.inference_mode()
    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits at the image's size; ``image`` is (C, H, W) in [0, 1].

        The network sees the image as it saw its training images: stretched, or at its own scale in overlapping windows.
        It is left in evaluation mode.

        Returns:
            The log-odds of the foreground (H, W); or of several classes logits (K, H, W), those of the background first.
        """
        self.net.eval()
        frame, own = self.net.framing, (image.shape[1], image.shape[2])
        size = self.size or frame.stretched_to or own
        seen = network_input(image, size, self.net.channels)[None].to(self.net.mean.device)
        logits = windowed(self.net, seen, frame.window if self.size is None else size).float().cpu()
        if size != own:
            logits = F.interpolate(logits, own, mode="bilinear", antialias=True)
        return np.asarray((logits[0, 0] if logits.shape[1] == 1 else logits[0]).numpy())

    def classes(self, logits: NDArray[np.float32]) -> NDArray[np.int16]:
        """Return the predicted class (H, W) of every pixel; 0 is the background."""
        if logits.ndim == 3:
            return np.asarray(logits.argmax(0).astype(np.int16))
        return np.asarray((logits > math.log(self.threshold / (1 - self.threshold))).astype(np.int16))

    @property
    def values(self) -> tuple[int, ...]:
        """Values of written masks by class index, the background first."""
        values = tuple(self.net.values.tolist())
        return values if len(values) > 1 else (0, 255)

    def warn_of_other_scale(self, sizes: Sequence[Size]) -> None:
        """Log a warning about sizes scaled otherwise than in training."""
        frame = self.net.framing
        if self.size is None and (others := other_scale(frame, sizes)):
            to, (height, width) = frame.stretched_to or (0, 0), others[0]
            log.warning(
                "%d of %d pictures are scaled by another factor than the training pictures: one of %dx%d is stretched to "
                "%dx%d, by %.2f and %.2f instead of %.2f and %.2f, so its objects differ in size from those in training. "
                "Expected pictures at the scale of the training. Try: train with resize=none, which keeps the scale of "
                "every picture.",
                len(others),
                len(sizes),
                height,
                width,
                *to,
                to[0] / height,
                to[1] / width,
                *frame.scale,
            )


def predict(segmenter: Segmenter, images: Path, masks: Path) -> list[Path]:
    """Write a mask for every picture in ``images`` into ``masks``.

    A mask is a PNG with the size and the stem of its picture: 8 bits of 0 and 255, or of several classes the values that
    the training masks had. The folder is created; masks of the same name are replaced.

    Raises:
        DataError: the folder holds no picture, two pictures have the same stem, or some cannot be read. Nothing is
            written if stems are the same; otherwise the readable pictures are processed before the error.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    pictures = pictures_in(images)
    for picture in pictures:
        by_stem[picture.stem].append(picture.name)
    if len(by_stem) < len(pictures):
        alike = "; ".join(", ".join(names) for names in by_stem.values() if len(names) > 1)
        raise DataError(f"Pictures in {images} have the same stem and would get the same mask: {alike}. Rename them.")
    masks.mkdir(parents=True, exist_ok=True)
    written, unread, sizes = [], [], []
    for picture in pictures:
        try:
            image = read_image(picture)
        except UnreadablePixels as error:
            unread.append(f"{picture.name} {error}")
            continue
        written.append(masks / f"{picture.stem}.png")
        write_mask(segmenter.classes(segmenter.logits(image)), written[-1], segmenter.values)
        sizes.append((image.shape[1], image.shape[2]))
    segmenter.warn_of_other_scale(sizes)
    if unread:
        raise DataError(
            f"{len(unread)} of {len(pictures)} pictures in {images} cannot be read and got no mask:\n  "
            + "\n  ".join(unread)
        )
    return written


def write_mask(classes: NDArray[np.generic], file: Path, values: Sequence[int] = (0, 255)) -> None:
    """Write a mask (H, W) of class indices as PNG: 8 bits, 16 where a value needs them, or colours."""
    table = np.array(values, np.int64)
    if (table >= COLOUR).any():
        # A grey value stands for a colour of three equal parts.
        rgb = np.where(table >= COLOUR, table - COLOUR, table * 0x010101)
        entries: NDArray[np.generic] = np.stack([rgb >> 16, rgb >> 8, rgb], axis=1).astype(np.uint8)
    else:
        entries = table.astype(np.uint8 if table.max() < 256 else np.uint16)
    Image.fromarray(entries[classes.astype(np.int64)]).save(file, format="PNG")


def main(arguments: list[str] | None = None) -> int:
    """Predict from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.segmentation.predict", description=predict.__doc__)
    parser.add_argument("model", type=Path, help="folder written by mltrain pull")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("masks", type=Path, help="folder to write the masks to")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of foreground (default 0.5)")
    given = parser.parse_args(arguments)
    try:
        written = predict(Segmenter.load(given.model, given.threshold), given.images, given.masks)
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{len(written)} masks are in {given.masks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
