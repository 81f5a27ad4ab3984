"""Division of the patients into training and held-out ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mltrain.errors import DataError
from projects.groups import group_of


@dataclass(frozen=True)
class Split:
    """Names of the cases of both parts, sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def drawn(infarcted: Mapping[str, bool], fraction: float, seed: int, patient: str | None = None) -> Split:
    """Draw the held-out patients, balanced by infarct.

    Half have an infarct and half have none, as far as there are enough of both.

    Args:
        infarcted: maps each case to whether it has an infarct.
        fraction: share of the patients to hold out; both parts get at least one.
        seed: determines the draw.
        patient: regular expression; cases with the same match are one patient. If ``None``, each case is a patient.

    Raises:
        DataError: there are fewer than two patients.
    """
    patients: dict[str, list[str]] = {}
    for case in sorted(infarcted):
        patients.setdefault(_patient(case, patient), []).append(case)
    if len(patients) < 2:
        raise DataError(f"{len(patients)} patient. Expected at least two, one to train on and one to hold out.")
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    random = np.random.default_rng(seed)
    with_infarct: list[str] = []
    without: list[str] = []
    for name in random.permutation(sorted(patients)):
        (with_infarct if any(infarcted[case] for case in patients[name]) else without).append(str(name))
    # Of an odd number one more has an infarct. At least half of each kind is for training, unless the other kind runs out.
    most = [len(with_infarct), len(without)]
    wanted = [min(-(-count // 2), -(-most[0] // 2)), min(count // 2, most[1] // 2)]
    while sum(wanted) < count:
        spare = [have - take for have, take in zip(most, wanted, strict=True)]
        wanted[int(np.argmax(spare))] += 1
    held_out = {*with_infarct[: wanted[0]], *without[: wanted[1]]}
    return Split(
        tuple(case for name, cases in patients.items() if name not in held_out for case in cases),
        tuple(case for name, cases in patients.items() if name in held_out for case in cases),
    )


def read(file: Path, cases: Sequence[str]) -> Split:
    """Read ``{"train": [...], "val": [...]}``; cases that it does not name are left out.

    Raises:
        DataError: it is malformed, names a case twice or an unknown one, or leaves a part empty.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: tuple(sorted(map(str, content[name]))) for name in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is not a table of splits like {{"train": [...], "val": [...]}}: {error!r}') from None
    named = [*parts["train"], *parts["val"]]
    twice = sorted({name for name in named if named.count(name) > 1})
    unknown = sorted(set(named) - set(cases))
    if twice or unknown or not all(parts.values()):
        raise DataError(
            f"{file} does not divide the cases. Named twice: {', '.join(twice) or 'none'}; not in the data: "
            f"{', '.join(unknown) or 'none'}; train has {len(parts['train'])} cases and val {len(parts['val'])}."
        )
    return Split(parts["train"], parts["val"])


def write(split: Split, file: Path) -> None:
    """Write the file that :func:`read` reads."""
    content = {"train": list(split.train), "val": list(split.val)}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _patient(case: str, expression: str | None) -> str:
    patient = group_of(case, expression)
    if patient is None:
        raise DataError(f"patient_regex={expression!r} does not match the case {case!r}.")
    return patient
