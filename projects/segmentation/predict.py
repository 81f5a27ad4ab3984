"""From a folder of images to a folder of masks, in Python or as a command::

mltrain pull RUN_ID --to model
python -m projects.segmentation.predict model images masks
"""

import argparse
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from mltrain.errors import DataError
from projects.segmentation.dataset import network_input
from projects.segmentation.folders import pictures_in
from projects.segmentation.model import SegmentationNet
from projects.segmentation.pixels import UnreadablePixels, read_image


@dataclass(frozen=True)
class Segmenter:
    """A trained network together with what is needed to use it on a picture of any size."""

    net: SegmentationNet
    size: tuple[int, int]
    """(H, W) that pictures are resized to for the network, as in training."""
    threshold: float = 0.5
    """Foreground is where its probability is above this, between 0 and 1."""

    @classmethod
    def load(cls, folder: Path, threshold: float = 0.5) -> "Segmenter":
        """The model that ``mltrain pull`` put into a folder.

        Raises:
            DataError: the folder holds no weights, or those of another network.
        """
        files = sorted(folder.glob("model*.safetensors"))
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        try:
            net = SegmentationNet.of(weights)
        except RuntimeError as error:
            raise DataError(
                f"{folder} holds no segmentation model: {error}. Pull one: mltrain pull RUN_ID --to {folder}"
            ) from None
        return cls(net, net.size, threshold)

    @torch.inference_mode()
    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The log-odds of the foreground (H, W) for an image (C, H, W) in [0, 1], at the size of that image.

        The network is left in evaluation mode.
        """
        self.net.eval()
        seen = network_input(image, self.size, self.net.channels)[None].to(self.net.mean.device)
        logits: torch.Tensor = self.net(seen).float().cpu()
        if logits.shape[2:] != image.shape[1:]:
            logits = F.interpolate(logits, image.shape[1:], mode="bilinear", antialias=True)
        return np.asarray(logits[0, 0].numpy())

    def foreground(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where the probability that these logits stand for is above the threshold."""
        return np.asarray(logits > math.log(self.threshold / (1 - self.threshold)))


def predict(segmenter: Segmenter, images: Path, masks: Path) -> list[Path]:
    """Write a mask for every picture in the folder ``images`` into the folder ``masks``.

    A mask is an 8-bit PNG of 0 and 255 with the size and the stem of its picture. The folder is made; masks of the
    same name are replaced.

    Raises:
        DataError: the folder holds no picture, two with the same stem, or some that cannot be read. Nothing is
            written for two with the same stem; of the others those that can be read are done first.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    pictures = pictures_in(images)
    for picture in pictures:
        by_stem[picture.stem].append(picture.name)
    if len(by_stem) < len(pictures):
        alike = "; ".join(", ".join(names) for names in by_stem.values() if len(names) > 1)
        raise DataError(f"Pictures in {images} have the same stem and would get the same mask: {alike}. Rename them.")
    masks.mkdir(parents=True, exist_ok=True)
    written, unread = [], []
    for picture in pictures:
        try:
            image = read_image(picture)
        except UnreadablePixels as error:
            unread.append(f"{picture.name} {error}")
            continue
        written.append(masks / f"{picture.stem}.png")
        write_mask(segmenter.foreground(segmenter.logits(image)), written[-1])
    if unread:
        raise DataError(
            f"{len(unread)} of {len(pictures)} pictures in {images} cannot be read, and have no mask:\n  "
            + "\n  ".join(unread)
        )
    return written


def write_mask(foreground: NDArray[np.bool_], file: Path) -> None:
    """Write a mask (H, W) as 8-bit PNG, 255 in the foreground."""
    Image.fromarray(foreground.astype(np.uint8) * 255).save(file, format="PNG")


def main(arguments: list[str] | None = None) -> int:
    """Predict from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.segmentation.predict", description=predict.__doc__)
    parser.add_argument("model", type=Path, help="the folder that mltrain pull made")
    parser.add_argument("images", type=Path, help="the folder of pictures")
    parser.add_argument("masks", type=Path, help="the folder to write the masks into")
    parser.add_argument("--threshold", type=float, default=0.5, help="of the probability (default 0.5)")
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
