"""Arrays of signals and classes, checked and converted to windows."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.utils.rnn import pad_sequence

from mltrain.errors import DataError
from projects.tool_wear.windows import Signals, Split, Windows, refuse

Examples = tuple[ArrayLike, ArrayLike]
"""Signals (N, T, C) and N classes: integers or names."""


def split_of(train_data: Examples, val_data: Examples | None) -> tuple[NDArray[Any], Split]:
    """Return sorted classes, and windows labelled by their indices.

    Raises:
        DataError: the examples are inconsistent, or ``val_data`` does not fit ``train_data``.
    """
    signals, targets = _examples(train_data, "train_data")
    classes, labels = np.unique(targets, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"train_data has the class {classes[0]} only; two are the least to tell apart.")
    train = _windows(signals, labels, classes, "train")
    if val_data is None:
        return classes, Split(train, _windows(signals[:0], labels[:0], classes, "val"), train.of([]))
    signals, targets = _examples(val_data, "val_data")
    problems = [f"the class {unknown} is not among those of train_data" for unknown in np.setdiff1d(targets, classes)]
    if signals.shape[2] != train.signals.shape[2]:
        problems.append(f"it has {signals.shape[2]} channels, and train_data {train.signals.shape[2]}")
    if problems:
        refuse("val_data does not fit train_data", problems)
    return classes, Split(train, _windows(signals, np.searchsorted(classes, targets), classes, "val"), train.of([]))


def _windows(signals: Signals, labels: NDArray[Any], classes: NDArray[Any], name: str) -> Windows:
    return Windows(
        signals=signals,
        labels=labels.astype(np.int64),
        tools=np.full(len(signals), name),
        cuts=np.arange(1, len(signals) + 1),
        wear=np.full(len(signals), np.nan, dtype=np.float32),
        channels=tuple(f"channel {channel}" for channel in range(signals.shape[2])),
        classes=tuple(str(each) for each in classes),
    )


def _examples(data: Examples, name: str) -> tuple[Signals, NDArray[Any]]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataError(f"{name} has to be a pair (X, y), and is a {type(data).__name__}.")
    signals, targets = signals_of(data[0], f"X of {name}"), np.asarray(data[1])
    if targets.shape != signals.shape[:1]:
        raise DataError(
            f"y of {name} has shape {targets.shape} for {len(signals)} windows; one class each was expected."
        )
    if np.issubdtype(targets.dtype, np.floating):
        raise DataError(f"y of {name} holds {targets.dtype}; classes are integers or names.")
    return signals, targets


def signals_of(given: ArrayLike, name: str) -> Signals:
    """Return signals as float32, shape (N, T, C); a list of windows (T_i, C) of unequal length is padded with NaN.

    Raises:
        DataError: they are not finite numbers of that shape; the error calls them ``name``.
    """
    unequal = _of_unequal_length(given)
    if unequal is not None:
        return _padded(unequal, name)
    try:
        signals = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} does not hold numbers: {error}.") from None
    if signals.ndim != 3 or signals.size == 0:
        raise DataError(f"{name} has shape {signals.shape}; (windows, steps, channels) was expected, each at least 1.")
    unfinished = ~np.isfinite(signals).all(axis=(1, 2))
    if unfinished.any():
        raise DataError(
            f"{name} holds NaN or infinity in {unfinished.sum()} windows, first in number {unfinished.argmax()}."
        )
    return signals


def _of_unequal_length(given: Any) -> list[NDArray[Any]] | None:
    """Return the windows (T_i, C) of a sequence, if their shapes differ."""
    if not (isinstance(given, (list, tuple)) or getattr(given, "dtype", None) == np.dtype(object)):
        return None
    try:
        windows = [np.asarray(window) for window in given]
    except ValueError:
        return None  # nested lists with a window whose rows differ in length
    if len({window.shape for window in windows}) < 2 or any(window.dtype == object for window in windows):
        return None
    return windows


def _padded(windows: list[NDArray[Any]], name: str) -> Signals:
    wrong = [f"{number} has shape {window.shape}" for number, window in enumerate(windows) if window.ndim != 2]
    channels = {window.shape[1] for window in windows if window.ndim == 2}
    if wrong or len(channels) != 1 or 0 in (*channels, *(len(window) for window in windows)):
        listed = "; ".join(wrong[:5]) or f"they have {', '.join(map(str, sorted(channels)))} channels, or no step"
        raise DataError(f"{name}: windows of unequal length have the shape (steps, channels) each, and {listed}.")
    for number, window in enumerate(windows):
        if not np.issubdtype(window.dtype, np.number) or not np.isfinite(window).all():
            raise DataError(f"{name} holds NaN, infinity or no numbers in window {number}.")
    tensors = [torch.from_numpy(window.astype(np.float32)) for window in windows]
    return np.asarray(pad_sequence(tensors, batch_first=True, padding_value=np.nan))
