"""Preparation of patients from a study's files or from phantoms::

python -m projects.cardiac.preparation --to prepared                                  # phantoms
python -m projects.cardiac.preparation --to prepared source=layout data=study
python -m projects.cardiac.preparation --to prepared source=acdc data=ACDC/database
"""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import mltrain
from mltrain.errors import DataError, MltrainError
from projects.cardiac import orientation, splits
from projects.cardiac.acdc import Acdc
from projects.cardiac.end_systole import end_systole
from projects.cardiac.labels import ACDC
from projects.cardiac.layout import Layout
from projects.cardiac.phantom import Phantom
from projects.cardiac.phantom_source import PhantomSource
from projects.cardiac.prepared import FORMAT, RECORD, PreparedCase, write_prepared_case
from projects.cardiac.raw import LateEnhancement, RawCase, Source, Truth, read_all
from projects.cardiac.stages.preparation import Config as Config
from projects.cardiac.window import Window

log = logging.getLogger(__name__)


def prepare(config: Config, to: Path) -> dict[str, float]:
    """Prepare every case, split by patient, and write the folder.

    Each is read, checked, resampled, cropped and normalised, and its end systole is found.

    Returns:
        Number of cases, of held-out cases, and of those with an infarct and with late enhancement.

    Raises:
        DataError: some cases cannot be used, and the error lists all of them; or no folder is given.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    source = source_of(config)
    to.mkdir(parents=True, exist_ok=True)
    (to / RECORD).unlink(missing_ok=True)
    infarcted, late = {}, 0
    for raw in read_all(source):
        case = prepared(raw, config.pixel_mm, config.side)
        write_prepared_case(case, to)
        infarcted[case.name] = case.infarcted
        late += case.has_late()
        log.debug("%s: end systole is frame %d (%s)", case.name, case.end_systole, case.end_systole_by)
    if config.splits is not None:
        split = splits.read(config.splits, list(infarcted))
    else:
        split = splits.drawn(infarcted, config.val_fraction, config.split_seed, config.patient_regex)
    splits.write(split, to / "splits.json")
    counts = {
        "cases": len(infarcted),
        "held_out": len(split.val),
        "infarcted": sum(infarcted.values()),
        "late_enhancement": late,
    }
    own = [name for name in Config.model_fields if name not in mltrain.Config.model_fields]
    # Of paths only the name: their place on one machine does not change the result.
    values = config.resolved()
    made_from = {
        name: path.name if isinstance(path := getattr(config, name), Path) else values[name]
        for name in own
        if name in values
    }
    record = {"format": FORMAT, "cases": sorted(infarcted), "counts": counts, "config": made_from}
    (to / RECORD).write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return {name: float(count) for name, count in counts.items()}


def source_of(config: Config) -> Source:
    """Return the configured source of patients."""
    if config.source == "phantom":
        phantom = Phantom(frames=config.frames, slices=config.slices, chronic=config.chronic)
        return PhantomSource(phantom=phantom, cases=config.cases, seed=config.seed)
    if config.data is None:
        raise DataError(f"source={config.source} needs a folder with files. Try: data=FOLDER")
    if config.source == "layout":
        return Layout(config.data, config.file_pixel_mm, config.labels, config.late_labels)
    return Acdc(config.data, config.labels or ACDC)


def prepared(raw: RawCase, pixel_mm: float, side: int) -> PreparedCase:
    """Crop cine and late enhancement, each about its myocardium's centroid.

    Raises:
        DataError: the square is too small for the myocardium.
    """
    kept = tuple(index for index, mask in enumerate(raw.myocardium) if mask.any())
    depth, raw = len(raw.cine), _of_slices(raw, list(kept))
    window = Window.about(raw.myocardium, raw.spacing, pixel_mm, side)
    wall = _cut_whole(raw.name, raw.myocardium, window)
    cine = np.stack([_normalised(window.cut(sequence)) for sequence in raw.cine])
    given = raw.end_systole
    systole, by = end_systole(cine, wall, raw.end_diastole) if given is None else (given, "given")
    drawn = {
        "end_systolic_myocardium": raw.end_systolic_myocardium,
        "cavity": raw.cavity,
        "end_systolic_cavity": raw.end_systolic_cavity,
    }
    optional: dict[str, NDArray[Any]] = {
        name: window.cut_mask(masks) for name, masks in drawn.items() if masks is not None
    }
    if raw.truth is not None:
        optional["end_systolic_myocardium"] = window.cut_mask(raw.truth.myocardium[:, systole])
        optional["displacement"] = window.cut_field(raw.truth.displacement[:, systole])
        optional["infarct"] = window.cut_mask(raw.truth.infarct)
    if raw.late is not None:
        optional |= _late(raw.name, raw.late, pixel_mm, side)
    return PreparedCase(
        name=raw.name,
        cine=_tensor(cine),
        myocardium=_tensor(wall),
        end_diastole=raw.end_diastole,
        end_systole=systole,
        end_systole_by=by,
        septum=_septum(raw),
        infarcted=raw.infarcted,
        slices=kept,
        depth=depth,
        affine=raw.affine,
        thickness=raw.thickness,
        window=window,
        oriented=raw.oriented,
        late_slices=None if raw.late is None else raw.late.slices,
        optional={name: _tensor(array) for name, array in optional.items()},
    )


def _septum(raw: RawCase) -> float:
    """Return the direction of the right ventricle: as marked, else the usual one by the affine, else the picture's left."""
    if raw.septum is not None:
        return raw.septum
    usual = orientation.usual_direction(raw.affine) if raw.oriented else None
    return orientation.PICTURE_LEFT if usual is None else usual


def _late(name: str, late: LateEnhancement, pixel_mm: float, side: int) -> dict[str, NDArray[Any]]:
    if not late.myocardium.any():
        raise DataError(f"{name}: the myocardium is not marked in any slice of late enhancement.")
    window = Window.about(late.myocardium, late.spacing, pixel_mm, side)
    return {
        "lge": np.stack([_normalised(window.cut(image)) for image in late.image]),
        "lge_myocardium": _cut_whole(name, late.myocardium, window),
        "lge_infarct": window.cut_mask(late.infarct),
    }


def _of_slices(raw: RawCase, kept: list[int]) -> RawCase:
    def of(masks: NDArray[Any] | None) -> Any:
        return None if masks is None else masks[kept]

    truth = raw.truth
    return replace(
        raw,
        cine=raw.cine[kept],
        myocardium=raw.myocardium[kept],
        end_systolic_myocardium=of(raw.end_systolic_myocardium),
        cavity=of(raw.cavity),
        end_systolic_cavity=of(raw.end_systolic_cavity),
        late=raw.late and _late_of_slices(raw.name, raw.late, kept),
        truth=truth
        and Truth(
            displacement=truth.displacement[kept], myocardium=truth.myocardium[kept], infarct=truth.infarct[kept]
        ),
    )


def _late_of_slices(name: str, late: LateEnhancement, kept: list[int]) -> LateEnhancement:
    """Return the kept cine slices' late enhancement, with new numbers."""
    at = late.slices if late.slices is not None else tuple(range(len(late.image)))
    own = [index for index, slice_ in enumerate(at) if slice_ in kept]
    if not own:
        raise DataError(f"{name}: no slice of late enhancement lies at a cine slice with marked myocardium.")
    slices = tuple(kept.index(at[index]) for index in own)
    return replace(
        late,
        image=late.image[own],
        myocardium=late.myocardium[own],
        infarct=late.infarct[own],
        slices=None if len(slices) == len(kept) else slices,
    )


def _cut_whole(name: str, mask: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    cut = window.cut_mask(mask)
    if cut[:, [0, -1]].any() or cut[:, :, [0, -1]].any():
        raise DataError(
            f"{name}: the myocardium does not fit into {window.side} pixels of {window.pixel_mm} mm. "
            f"Try: side={window.side + 16}"
        )
    return cut


def _normalised(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale pictures' percentiles 1 to 99 to [0, 1]; clip the others."""
    low, high = np.percentile(pictures, (1, 99))
    return np.asarray(np.clip((pictures - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def main(arguments: list[str] | None = None) -> int:
    """Prepare from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.cardiac.preparation", description=prepare.__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument("--preset", help="quick or small")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of the section preparation in config.yaml"
    )
    given = parser.parse_args(arguments)
    try:
        overrides = dict(word.partition("=")[::2] for word in given.overrides)
        counts = prepare(Config.load(preset=given.preset, overrides=overrides), given.to)
    except MltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(", ".join(f"{name.replace('_', ' ')}: {count:.0f}" for name, count in counts.items()), f"in {given.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
