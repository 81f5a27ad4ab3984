"""Map the values of masks to background, classes and void."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from projects.segmentation.lossy import TooGrey, boundary
from projects.segmentation.values import NONZERO, Values, listed, ordered_pair, text

VOID = -1
"""Class index of pixels that count neither in the loss nor in a metric."""

FOREGROUND = "foreground"
_BACKGROUND = "background"
_EXAMPLES = 3

NO_VALUES, ZERO = Values(), Values.only(0)
_TABLE = 1 << 16


class UnclearLabels(ValueError):
    """Mask values are ambiguous, or not as declared.

    Attributes:
        kind: what is wrong with them.
        examples: one line for each value or file that shows it.
    """

    def __init__(self, kind: str, examples: Sequence[str]) -> None:
        super().__init__(f"{kind}: {'; '.join(examples)}")
        self.kind = kind
        self.examples = tuple(examples)


@dataclass(frozen=True)
class Content:
    """The pixels of one mask by value; ``lossy`` where the file's format changes values."""

    name: str
    pixels: Mapping[int, int]
    lossy: bool = False


@dataclass(frozen=True)
class LabelClass:
    """A class: its name, and the values that its pixels have in a mask."""

    name: str
    values: Values


@dataclass(frozen=True)
class Labels:
    """Map mask values to class indices.

    0 is the background, 1 the first class, -1 void. In lossy files, values above ``boundary`` are the one class instead.
    """

    classes: tuple[LabelClass, ...]
    void: Values = NO_VALUES
    boundary: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return tuple(one.name for one in self.classes)

    @property
    def written_values(self) -> tuple[int, ...]:
        """Values of predicted masks.

        255 for one class; for several, 0 for the background and the first value of each class.
        """
        return (255,) if len(self.classes) == 1 else (0, *(one.values.first for one in self.classes))

    def index(self, value: int) -> int:
        """The class index of one value."""
        if value in self.void:
            return VOID
        return next((number for number, one in enumerate(self.classes, start=1) if value in one.values), 0)

    def indices(self, values: NDArray[np.integer], *, lossy: bool = False) -> NDArray[np.int16]:
        """Class indices (H, W) of the values (H, W) of a mask."""
        if lossy and self.boundary is not None:
            return (values > self.boundary).astype(np.int16)
        present = np.unique(values) if values.max(initial=0) >= _TABLE or values.min(initial=0) < 0 else None
        if present is None:
            table = np.zeros(int(values.max(initial=0)) + 1, np.int16)
            for value in np.flatnonzero(np.bincount(values.ravel(), minlength=len(table))):
                table[value] = self.index(int(value))
            return np.asarray(table[values])
        table = np.array([self.index(int(value)) for value in present], np.int16)
        return np.asarray(table[np.searchsorted(present, values)])

    def counts(self, content: Content) -> dict[int, int]:
        """Count the pixels of a mask by class index."""
        found: Counter[int] = Counter()
        for value, pixels in content.pixels.items():
            if content.lossy and self.boundary is not None:
                found[int(value > self.boundary)] += pixels
            else:
                found[self.index(value)] += pixels
        return dict(found)

    def __str__(self) -> str:
        parts = [f"{one.name} = {one.values}" for one in self.classes]
        return "; ".join([*parts, *([f"void = {self.void}"] if self.void.ranges else [])])


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The user's declaration of mask values; the masks decide the rest.

    Attributes:
        foreground: values of the one class; all others are background.
        void: values of pixels that neither the loss nor a metric counts.
        classes: names and values of several classes; other values than these, 0 and ``void`` are refused.
        background: values of the background besides 0, where classes are given.
    """

    foreground: Values | None = None
    void: Values = NO_VALUES
    classes: tuple[LabelClass, ...] = ()
    background: Values = ZERO

    @classmethod
    def of(cls, foreground: str | None, void: str | None, classes: Sequence[str] | None) -> "Declaration":
        """Read the keys ``foreground``, ``void`` and ``classes`` of a configuration.

        A class is ``1``, ``liver=1``, ``vessel=2-4`` or a name alone; names alone are numbered from 1, or from 0 where
        the first is ``background``.

        Raises:
            ValueError: a value cannot be read, stands twice, or both ``foreground`` and ``classes`` are given.
        """
        if foreground is not None and classes:
            raise ValueError("foreground and classes exclude one another; foreground is for one class")
        every = _classes(classes or ())
        background = [one for one in every if one.name in (_BACKGROUND, "0")]
        rest = tuple(one for one in every if one not in background)
        zero = () if any(0 in one.values for one in rest) else ZERO.ranges
        given = cls(
            foreground=None if foreground is None else Values.parse(foreground),
            void=NO_VALUES if void is None else Values.parse(void),
            classes=rest,
            background=Values(tuple(limits for one in background for limits in one.values.ranges) or zero),
        )
        if classes and not given.classes:
            raise ValueError("classes names the background only; a class is missing")
        _refuse_shared(given, every)
        return given

    def labels(self, masks: Sequence[Content]) -> Labels:
        """Decide the labels of all masks of a data set.

        Two values are background and foreground, the lower one being background, whatever they are.

        Raises:
            UnclearLabels: there are more than two and nothing is declared, or other values than the declared ones.
        """
        lossy, exact = [one for one in masks if one.lossy], [one for one in masks if not one.lossy]
        declared = self.foreground is not None or bool(self.classes) or bool(self.void.ranges)
        if declared and lossy:
            raise UnclearLabels(
                "masks in a lossy format (JPEG), which changes values, so that none can be declared; save them as PNG, or "
                "leave foreground, void and classes out if they are black and white",
                [one.name for one in lossy],
            )
        try:
            limit = boundary({one.name: one.pixels for one in lossy}) if lossy else None
        except TooGrey as error:
            raise UnclearLabels(*error.args) from None
        where: dict[int, list[str]] = defaultdict(list)
        for one in exact:
            for value in one.pixels:
                where[value].append(one.name)
        if limit is not None:
            for value, names in limit.values.items():
                where[value] += names
        if self.classes:
            return self._declared(where)
        judged = sorted(value for value in where if value not in self.void)
        if self.foreground is not None:
            if judged and not self.foreground.among(judged):
                raise UnclearLabels(f"no mask holds foreground={self.foreground}; the values are", _lines(where))
            return Labels((LabelClass(FOREGROUND, self.foreground),), self.void)
        if len(judged) > 2:
            raise UnclearLabels(
                "masks with more than two values; declare what they mean with foreground=nonzero, foreground=1,3 (the "
                "rest is background), void=255 (left out of loss and metrics) or classes=[1,2]; the values are",
                _lines(where),
            )
        foreground = Values((NONZERO,))
        if len(judged) == 2:
            foreground = Values.only(ordered_pair(*judged)[1])
        elif judged and judged[0] != 0:
            foreground = Values.only(judged[0])
        return Labels((LabelClass(FOREGROUND, foreground),), self.void, None if limit is None else limit.threshold)

    def _declared(self, where: Mapping[int, Sequence[str]]) -> Labels:
        unknown = [
            value
            for value in where
            if not (value in self.void or value in self.background or any(value in one.values for one in self.classes))
        ]
        if unknown:
            raise UnclearLabels(
                "mask values that classes does not name; add them, or declare void= or background= for them",
                _lines({value: where[value] for value in unknown}),
            )
        absent = [one for one in self.classes if not one.values.among(where)]
        if absent:
            raise UnclearLabels(
                f"classes without a pixel in any mask; the masks hold {listed(where)}",
                [f"{one.name} = {one.values}" for one in absent],
            )
        return Labels(self.classes, self.void)


def _classes(given: Sequence[str]) -> tuple[LabelClass, ...]:
    parts = [re.fullmatch(r"(?:([^=]+?)\s*=\s*)?(\S.*)", str(one).strip()) for one in given]
    if not all(parts):
        raise ValueError(f"classes={list(given)!r} holds an empty entry")
    pairs = [(part[1], part[2]) for part in parts if part is not None]
    alone = [value for name, value in pairs if name is None and not re.match(r"[\d#]", value)]
    if alone and len(alone) < len(pairs):
        raise ValueError("classes are names alone, or each has its value as in liver=1")
    if alone:
        start = 0 if alone[0].lower() == _BACKGROUND else 1
        pairs = [(name, str(number)) for number, name in enumerate(alone, start=start)]
    every = tuple(
        LabelClass(
            (name or value).lower() if (name or "").lower() == _BACKGROUND else name or value, Values.parse(value)
        )
        for name, value in pairs
    )
    names = Counter(one.name for one in every)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"classes names {', '.join(twice)} twice")
    return every


def _refuse_shared(given: Declaration, classes: Sequence[LabelClass]) -> None:
    ranges = [(one.name, low, high) for one in classes for low, high in one.values.ranges]
    ranges += [("void", low, high) for low, high in given.void.ranges if classes]
    ranges.sort(key=lambda one: one[1])
    for (one, _, high), (other, low, _) in pairwise(ranges):
        if low <= high:
            raise ValueError(f"the value {text(low)} belongs to both {one} and {other}")


def _lines(where: Mapping[int, Sequence[str]]) -> list[str]:
    """One line per value, or one for all of many."""
    if len(where) > 20:
        names = sorted({name for found in where.values() for name in found})
        return [f"{listed(where)} in {_files(names)}"]
    return [f"{text(value)} in {_files(where[value])}" for value in sorted(where)]


def _files(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")
    return f"{len(names)} mask{'s' if len(names) != 1 else ''}: {shown}"
