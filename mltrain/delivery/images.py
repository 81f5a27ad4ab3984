"""Images and figures for the MLflow UI."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mltrain.errors import UsageError

PREVIEW_PIXELS = 512
_CHANNELS = (1, 3, 4)
_UI_NAME = re.compile(r"(.+)\+step\+(\d+)\+timestamp\+\d+\+[0-9a-f-]{36}\.png", re.ASCII)
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_. -]*"
_KEY = re.compile(rf"(?=.{{1,100}}$){_WORD}(/{_WORD})*", re.ASCII)  # so that its files are artifacts with valid names


def as_image(picture: Any) -> Any:
    """Return a picture as a PIL image.

    Args:
        picture: a PIL image; a matplotlib figure; the path of an image file; or an array or tensor of shape (H, W),
            (H, W, C) or (C, H, W), with 1, 3 or 4 channels. If both layouts are possible, channels come last in an array
            and first in a tensor. A leading dimension of 1 is dropped. Values are uint8; integers from 0 to 255; uint16 of
            its full range; booleans; or floats from 0 to 1 (from 0 to 255 if the largest is above 2). Other floats are
            clipped, and NaN is black.

    Raises:
        UsageError: the picture has another type, shape or dtype.
    """
    from PIL import Image

    if isinstance(picture, (str, os.PathLike)):
        with Image.open(picture) as opened:
            return opened.convert("L" if opened.mode == "L" else "RGB")
    if isinstance(picture, Image.Image):
        return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
    if hasattr(picture, "savefig"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(picture)
        canvas.draw()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    pixels = _pixels(picture)
    if pixels is None:
        shape = f" of shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
        kind = f" and dtype {picture.dtype}" if hasattr(picture, "dtype") else ""
        raise UsageError(
            "The picture has the wrong type. Expected a PIL image, a matplotlib figure, the path of an image file, or an "
            "array or tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels of uint8 or of floats from 0 "
            f"to 1, got a {type(picture).__name__}{shape}{kind}."
        )
    return Image.fromarray(pixels[..., :3] if pixels.ndim == 3 else pixels)


def _pixels(picture: Any) -> Any:
    """Return a picture as uint8 pixels.

    The shape is (H, W), (H, W, 3) or (H, W, 4). Returns ``None`` for a value that is not a picture.
    """
    channels_first = isinstance(picture, torch.Tensor)
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu()
        picture = picture.float() if picture.is_floating_point() else picture  # NumPy has no bfloat16
    if not isinstance(picture, torch.Tensor) and not hasattr(picture, "__array__"):
        return None
    array = np.asarray(picture)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim not in (2, 3) or array.size == 0:
        return None
    if array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if not (first or last):
            return None
        array = np.moveaxis(array, 0, 2) if first and (channels_first or not last) else array
        array = array[..., 0] if array.shape[2] == 1 else array
    pixels = _bytes(array)
    return None if pixels is None else np.ascontiguousarray(pixels)


def _bytes(array: Any) -> Any:
    """Return pixel values as uint8.

    Returns ``None`` for integers outside 0 to 255, and for values that are not real numbers.
    """
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array // 257).astype(np.uint8)
    if kind in "iu":
        return array.astype(np.uint8) if array.min() >= 0 and array.max() <= 255 else None
    if kind != "f":
        return None
    values = np.nan_to_num(array.astype(np.float32), nan=0.0)
    scale = 255.0 if values.max() <= 2 else 1.0
    return np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)


def ui_stem(name: str, step: int, timestamp: int, identifier: object) -> str:
    """Return the file stem of a picture for the UI.

    It has the form of ``MlflowClient.log_image`` (MLflow 3.17), but with a fixed identifier, so that a retry makes no second
    file.

    Raises:
        UsageError: the name has characters that no artifact can have.
    """
    if not _KEY.fullmatch(name):
        raise UsageError(f"{name!r:.80} cannot name a picture. Expected up to 100 letters, digits, blanks and _ - . /")
    return f"{name.replace('/', '~')}+step+{step}+timestamp+{timestamp}+{identifier}"


def ui_identity(file_name: str) -> tuple[str, int] | None:
    """Return a picture's name and step by its file name.

    Returns ``None`` for a file of another kind.
    """
    match = _UI_NAME.fullmatch(file_name)
    return (match[1].replace("~", "/"), int(match[2])) if match else None


def save_for_ui(image: Any, folder: Path, stem: str) -> list[Path]:
    """Write a picture and its preview for the UI; return both paths."""
    full, small = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    image.save(full)
    preview = image.copy()
    preview.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    preview.save(small)
    return [full, small]
