"""Windows of sensor signals with wear classes, split by tool."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from scipy.signal import decimate

from mltrain.errors import DataError, nearest
from projects.tool_wear.wear_table import Unit

Signals = NDArray[np.float32]
Labels = NDArray[np.int64]

UNLABELLED = -1
"""The label of a window without known wear."""

_FILTER_REACH = 10
"""Decimated samples that the anti-aliasing filter sees on either side of one: half of its 20 q + 1 taps."""

_MOST_PROBLEMS = 20
"""Largest number of problems listed in one error; the rest are counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows in the order of cuts, with classes and tools.

    Attributes:
        signals: shape (N, T, C), float32, in the units of the sensors; windows shorter than T end in steps of NaN.
        labels: shape (N,), int64: a class, or :data:`UNLABELLED`.
        tools: shape (N,), str: the tool of each window, by which sets are split.
        cuts: shape (N,), int64: the cut of that tool, from 1.
        wear: shape (N,), float32: flank wear [um], NaN if unknown.
        channels: names of the C channels.
        classes: names of the classes.
        rate: sampling rate of the signals [Hz]; ``None`` if unknown.
        bins: limits of wear between the classes [um]; empty if the classes are not of wear.
    """

    signals: Signals
    labels: Labels
    tools: NDArray[np.str_]
    cuts: Labels
    wear: Signals
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    rate: float | None = None
    bins: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.signals)

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the windows chosen by a boolean array of shape (N,)."""
        return replace(
            self,
            signals=self.signals[chosen],
            labels=self.labels[chosen],
            tools=self.tools[chosen],
            cuts=self.cuts[chosen],
            wear=self.wear[chosen],
        )

    def of(self, tools: Sequence[str]) -> Self:
        """Return the windows recorded on these tools."""
        return self.where(np.isin(self.tools, list(tools)))

    @property
    def lengths(self) -> Labels:
        """Steps of each window without its padding, shape (N,)."""
        return np.asarray((~np.isnan(self.signals[..., 0])).sum(axis=1), dtype=np.int64)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The distinct tools, sorted with numbers by their value: c2 before c10."""
        return tuple(sorted({str(tool) for tool in self.tools}, key=_by_numbers))


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """Settings of windows and of wear classes.

    Attributes:
        steps: length of a window in samples.
        rate: sampling rate of a window [Hz]; recordings at a multiple of it are decimated.
        per_cut: number of windows per cut.
        bins: limits of the wear classes [um], rising.
        wear_of: flank wear of a cut, the mean over the flutes (as in ISO 8688-2) or the largest.
        wear_unit: unit of the wear tables; ``auto`` recognises mm by values that are too small for um.
        class_names: one more than there are limits. If empty, see :attr:`classes`.
    """

    steps: int = 128
    rate: float = 5000.0
    per_cut: int = 2
    bins: tuple[float, ...] = (90.0, 140.0)
    wear_of: Literal["mean", "max"] = "mean"
    wear_unit: Unit = "auto"
    class_names: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes: as given, or initial, steady and severe wear if there are three, else their limits."""
        if self.class_names:
            return self.class_names
        if len(self.bins) == 2:
            return ("initial", "steady", "severe")
        limits = [f"{limit:g}" for limit in self.bins]
        between = (f"{low}-{high} um" for low, high in pairwise(limits))
        return (f"< {limits[0]} um", *between, f">= {limits[-1]} um")

    def factor(self, rate: float) -> int:
        """Return the decimation factor for recordings at ``rate`` [Hz].

        Raises:
            DataError: it is not a whole number.
        """
        factor = round(rate / self.rate)
        if factor < 1 or abs(factor * self.rate - rate) > 1e-6 * rate:
            raise DataError(
                f"Recordings at {rate:g} Hz cannot be decimated to {self.rate:g} Hz: the ratio has to be a whole number. "
                f"Choose a rate that divides {rate:g}."
            )
        return factor

    def samples(self, factor: int) -> int:
        """Return the samples for one window before decimation by ``factor``."""
        return self.steps if factor == 1 else (self.steps + 2 * _FILTER_REACH) * factor

    def decimated(self, recording: NDArray[np.floating], factor: int) -> Signals:
        """Return the middle of a recording decimated by ``factor``: (..., samples, C) to (..., steps, C).

        Frequencies above the new Nyquist rate are removed first, by a linear-phase FIR filter with a Hamming window
        (``scipy.signal.decimate``); otherwise the harmonics of a 50 kHz recording would fold onto one another. A
        recording of :meth:`samples` is just long enough for the filter never to see its ends.
        """
        if factor > 1:
            recording = decimate(recording, factor, n=2 * _FILTER_REACH * factor, ftype="fir", axis=-2)
        first = (recording.shape[-2] - self.steps) // 2
        return np.ascontiguousarray(recording[..., first : first + self.steps, :], dtype=np.float32)

    def wear(self, flutes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return each cut's wear (cuts,) from that of the flutes (cuts, teeth) [um]."""
        reduced = flutes.mean(axis=1) if self.wear_of == "mean" else flutes.max(axis=1)
        return np.asarray(reduced, dtype=np.float64)

    def labels(self, wear: NDArray[np.floating]) -> Labels:
        """Return the class of each wear [um] (the number of limits reached); :data:`UNLABELLED` for NaN."""
        return np.where(np.isnan(wear), UNLABELLED, np.digitize(wear, self.bins)).astype(np.int64)


class Split(NamedTuple):
    """Training, validation (which chooses the best epoch) and test windows; no tool is in two of them."""

    train: Windows
    val: Windows
    test: Windows


def split_by_tool(windows: Windows, val: Sequence[str] = (), test: Sequence[str] = ()) -> Split:
    """Split windows by tool: named ones for validation and test, all others for training.

    Windows of one cut resemble one another more than the same wear on another tool does, so a split by window would
    measure memory. If ``val`` is empty, the last tool that is not in ``test`` is used for validation.

    Raises:
        DataError: a tool is missing or named twice, no tool is left to train on, or a class has no training window.
    """
    names = windows.tool_names
    if not names:
        refuse(
            "The windows cannot be split by tool",
            ["no window has a known class or wear. Expected at least one of each tool"],
        )
    if len(names) == 1:
        refuse(
            "The windows cannot be split by tool",
            [f"there is one tool, {names[0]}. Expected two at least, one to train on and one to choose the best epoch"],
        )
    problems = [f"there is no tool {tool!r}.{_similar(tool, names)}" for tool in (*val, *test) if tool not in names]
    problems += [f"{tool!r} is named for validation and for test" for tool in val if tool in test]
    for key, named in (("val_tools", val), ("test_tools", test)):
        problems += [f"{tool!r} appears twice in {key}" for tool in dict.fromkeys(named) if list(named).count(tool) > 1]
    remaining = [tool for tool in names if tool not in test]
    validating = tuple(val) or tuple(remaining[-1:])
    training = [tool for tool in remaining if tool not in validating]
    if not training:
        problems.append("no tool is left to train on")
    split = Split(windows.of(training), windows.of(validating), windows.of(test))
    if not problems:
        present = set(split.train.labels.tolist())
        without = [name for label, name in enumerate(windows.classes) if label not in present]
        problems += [f"no window of the training tools {', '.join(training)} is {name!r}" for name in without]
        if len(windows.classes) == 1:
            problems.append(f"all windows are {windows.classes[0]!r}, and there is nothing to tell apart")
    if problems:
        limits = ", or change wear_bins" if windows.bins else ""
        problems.append(f"the tools are {', '.join(names)}; name others as val_tools and test_tools{limits}")
        refuse("The windows cannot be split by tool", problems)
    return split


def _similar(tool: str, names: Sequence[str]) -> str:
    """Suggest the only tool alike (up to capitals and leading letters), else the nearest name."""
    alike = [name for name in names if name.lower() == tool.lower() or re.sub(r"^\D+", "", name) == tool]
    return f" Did you mean {alike[0]!r}?" if len(alike) == 1 else nearest(tool, names)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts digits in names as numbers; 1 and 01 stay apart."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def refuse(what: str, problems: Sequence[str]) -> NoReturn:
    """Raise one error with all problems of some data.

    Raises:
        DataError: always.
    """
    lines = [f"  - {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  … and {len(problems) - _MOST_PROBLEMS} more")
    raise DataError("\n".join([f"{what}:", *lines]))
