"""Structures by the values of a label file.

Conventions of public studies: ACDC (Bernard et al., IEEE TMI 2018) has 1 right ventricle, 2 myocardium, 3 left ventricle.
EMIDEC (Lalande et al., Data 2020; https://emidec.com/dataset) has 1 cavity, 2 normal myocardium, 3 infarct, 4 no-reflow,
and its whole myocardium is the union of 2, 3 and 4.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mltrain.configuration.files import plain_yaml
from mltrain.errors import DataError

Structure = Literal["lv", "myocardium", "rv", "infarct"]
STRUCTURES: tuple[Structure, ...] = ("lv", "myocardium", "rv", "infarct")

_LISTED = 12  # values that an error lists
_WHOLE = 1e-3  # how far a stored label may be from its whole number


def _as_values(given: Any) -> Any:
    """Convert a value, list or comma-separated text to a list."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",")]
    return given if isinstance(given, list | tuple) else [given]


Values = Annotated[tuple[int, ...], BeforeValidator(_as_values)]


class LabelMap(BaseModel):
    """Values of a label file by structure; 0 is the background.

    ``acdc`` and ``emidec`` stand for the conventions of these studies. Infarct is always a part of the myocardium.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lv: Values = Field((), description="Cavity of the left ventricle.")
    myocardium: Values = Field(min_length=1, description="Myocardium of the left ventricle.")
    rv: Values = Field((), description="Right ventricle.")
    infarct: Values = Field((), description="Infarct, no-reflow included.")

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        """Resolve a convention's name, or a map given as text."""
        if not isinstance(given, str):
            return given
        if given in PRESETS:
            return PRESETS[given].model_dump()
        parsed = plain_yaml(given) if given.startswith("{") else None
        if not isinstance(parsed, dict):
            raise ValueError(f"expected {', '.join(PRESETS)}, or a map such as {{lv: 3, myocardium: 2, rv: 1}}")
        return parsed

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        """Refuse a value of two structures, or of the background."""
        owners: dict[int, str] = {0: "the background"}
        for structure in STRUCTURES:
            for value in getattr(self, structure):
                if owners.setdefault(value, structure) != structure:
                    raise ValueError(f"{value} stands for {owners[value]} and for {structure}; expected one of them")
        return self

    def values(self, structure: Structure) -> tuple[int, ...]:
        """Return the values that are part of a structure."""
        own: tuple[int, ...] = getattr(self, structure)
        return own + self.infarct if structure == "myocardium" else own

    def __str__(self) -> str:
        """Return the map as written on the command line."""
        named = {structure: getattr(self, structure) for structure in STRUCTURES if getattr(self, structure)}
        shown = {name: str(values[0]) if len(values) == 1 else str(list(values)) for name, values in named.items()}
        return "{" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + "}"


ACDC = LabelMap(lv=(3,), myocardium=(2,), rv=(1,))
EMIDEC = LabelMap(lv=(1,), myocardium=(2,), infarct=(3, 4))
PRESETS = {"acdc": ACDC, "emidec": EMIDEC}


def mask(
    volume: NDArray[Any], file: object, structure: Structure, labels: LabelMap | None, key: str
) -> NDArray[np.bool_]:
    """Return where a structure is in a label file.

    Args:
        volume: its values, of any shape.
        file: its name, for errors.
        structure: the structure to return.
        labels: structures of the values. If ``None``, it holds one structure: two values are background and foreground.
        key: the configuration's key for ``labels``, for errors.

    Raises:
        DataError: it has more than two values and no map, values that the map does not name, or NaN.
    """
    if not np.isfinite(volume).all():
        raise DataError(f"{file} holds NaN or infinity. Expected labels, such as 0 and 1.")
    values, counts = np.unique(volume, return_counts=True)
    if labels is None:
        return _foreground(volume, values, counts, f"{file}", structure, key)
    whole = np.rint(values)
    unknown = (np.abs(values - whole) > _WHOLE) | ~np.isin(whole, [0, *_named(labels)])
    if unknown.any():
        raise DataError(
            f"{file} holds values that {key}={labels} does not name: {_listed(values[unknown], counts[unknown])}. "
            f"Expected 0 and {', '.join(map(str, _named(labels)))}. Try: name them in {key}."
        )
    return np.asarray(np.isin(np.rint(volume), labels.values(structure)))


def _foreground(
    volume: NDArray[Any], values: NDArray[Any], counts: NDArray[Any], file: str, structure: str, key: str
) -> NDArray[np.bool_]:
    if len(values) > 2:
        raise DataError(
            f"{file} holds {len(values)} values: {_listed(values, counts)}. Expected two, background and {structure}. Try: "
            f"{key}=acdc, {key}=emidec, or a map of your own such as {key}='{{lv: 3, myocardium: 2, rv: 1}}'."
        )
    if len(values) == 1 and values[0] != 0:
        raise DataError(f"{file} holds nothing but the value {values[0]:g}. Expected two, background and {structure}.")
    background = 0 if 0 in values else values[0]
    return np.asarray(volume != background)


def _named(labels: LabelMap) -> list[int]:
    return sorted({value for structure in STRUCTURES for value in labels.values(structure)})


def _listed(values: NDArray[Any], counts: NDArray[Any]) -> str:
    shown = [f"{value:g} ({count} voxels)" for value, count in zip(values[:_LISTED], counts[:_LISTED], strict=True)]
    return ", ".join(shown) + (f" and {len(values) - _LISTED} more" if len(values) > _LISTED else "")
