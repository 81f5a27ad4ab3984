"""Recordings in the layout of the PHM Society's 2010 challenge.

Below one folder, at any depth, lie ``c_1_001.csv`` … ``c_1_315.csv`` for each cut of tool c1, and ``c1_wear.csv`` with
its wear. A recording has seven columns without a header, sampled at 50 kHz: forces in x, y and z [N], accelerations in x, y
and z [g], acoustic emission [V]. A wear file has the header ``cut,flute_1,flute_2,flute_3`` and the flank wear after each
cut in 1e-3 mm, that is um. Of the challenge's six tools only c1, c4 and c6 have one.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.tool_wear import generator, npz, wear_table
from projects.tool_wear.windows import Signals, Windowing, Windows, refuse

logger = logging.getLogger(__name__)

RATE = 50_000.0
"""Sampling rate of the recordings [Hz]."""

CHANNELS = generator.CHANNELS

_RECORDING = re.compile(r"c_(\d+)_(\d+)\.csv", re.IGNORECASE)
_WEAR = re.compile(r"c(\d+)_wear\.csv", re.IGNORECASE)


@dataclass(frozen=True)
class Cutter:
    """The files of one tool: a recording for each cut, and the wear where it was measured."""

    name: str
    cuts: dict[int, Path]
    wear: Path | None


def find(folder: Path) -> tuple[Cutter, ...]:
    """Return the tools with recordings below a folder, by number.

    Raises:
        DataError: there are none, or a cut, a tool or its wear file appears twice; the error lists all problems.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give the folder that holds c1/c_1_001.csv and so on.")
    cuts: dict[int, dict[int, Path]] = {}
    wear: dict[int, Path] = {}
    problems = []
    for file in sorted(folder.rglob("*.csv")):
        if match := _RECORDING.fullmatch(file.name):
            of_tool = cuts.setdefault(int(match[1]), {})
            other = of_tool.setdefault(int(match[2]), file)
            if other != file:
                problems.append(f"{file.relative_to(folder)} and {other.relative_to(folder)} are the same cut")
        elif match := _WEAR.fullmatch(file.name):
            other = wear.setdefault(int(match[1]), file)
            if other != file:
                names = f"{file.relative_to(folder)} and {other.relative_to(folder)}"
                problems.append(f"{names} are both the wear of tool c{match[1]}. Leave one of them")
    for tool, of_tool in sorted(cuts.items()):
        folders = sorted({str(file.parent.relative_to(folder)) for file in of_tool.values()})
        if len(folders) > 1 and not problems:
            problems.append(
                f"tool c{tool} appears twice: {', '.join(folders)} hold cuts of it. Put the cuts of one tool into one folder"
            )
    if not cuts:
        problems.append("it has no recording called c_<tool>_<cut>.csv, such as c1/c_1_001.csv, at any depth")
    if problems:
        refuse(f"{folder} is no folder in the layout of PHM 2010", problems)
    return tuple(Cutter(f"c{tool}", dict(sorted(cuts[tool].items())), wear.get(tool)) for tool in sorted(cuts))


def read(folder: Path, windowing: Windowing) -> Windows:
    """Read the windows of tools with measured wear; a warning names the others.

    Raises:
        DataError: no tool has wear, or files are damaged, too short or inconsistent; the error lists all of them.
    """
    cutters = find(folder)
    without = [cutter.name for cutter in cutters if cutter.wear is None]
    if len(without) == len(cutters):
        refuse(f"{folder} cannot be trained on", [f"{name} has no {name}_wear.csv" for name in without])
    if without:
        logger.warning("%s: left out, because their wear is not known.", ", ".join(without))
    return _read([cutter for cutter in cutters if cutter.wear is not None], folder, windowing)


def read_unlabelled(folder: Path, windowing: Windowing) -> Windows:
    """Read the windows of all tools; wear files are ignored.

    Raises:
        DataError: files are damaged or too short; the error lists all of them.
    """
    return _read([Cutter(cutter.name, cutter.cuts, None) for cutter in find(folder)], folder, windowing)


def read_cached(folder: Path, windowing: Windowing, cache: Path) -> Windows:
    """Read like :func:`read`, and cache the windows.

    Reading 945 files of 200,000 lines takes minutes. The cache is used as long as names, sizes and times of the files and
    the windowing are the same.
    """
    files = [file for cutter in find(folder) for file in (*cutter.cuts.values(), cutter.wear) if file is not None]
    listed = [(file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([listed, asdict(windowing)]).encode()).hexdigest()[:16]
    kept = cache / f"phm-{key}.npz"
    if kept.exists():
        try:
            return npz.read(kept, Windowing(wear_unit="um"))  # the cache is in um whatever the unit of the tables
        except DataError as error:
            logger.warning("The cached windows are read anew: %s", error)
    started = time.monotonic()
    windows = read(folder, windowing)
    logger.info("Read %d files in %.0f s.", len(files), time.monotonic() - started)
    try:
        npz.write(kept, windows)
    except OSError as error:
        logger.warning("The windows cannot be cached in %s, so the next start reads all files again: %s", cache, error)
    return windows


def write_tool(folder: Path, number: int, recordings: Signals, wear: NDArray[np.floating]) -> None:
    """Write a tool's recordings (cuts, samples, 7) and flute wear (cuts, teeth) [um]."""
    below = folder / f"c{number}"
    below.mkdir(parents=True, exist_ok=True)
    for cut, recording in enumerate(recordings, start=1):
        pd.DataFrame(recording).to_csv(
            below / f"c_{number}_{cut:03d}.csv", header=False, index=False, float_format="%.4g"
        )
    flutes = pd.DataFrame(wear, columns=[f"flute_{flute}" for flute in range(1, wear.shape[1] + 1)])
    flutes.insert(0, "cut", np.arange(1, len(wear) + 1))
    flutes.to_csv(below / f"c{number}_wear.csv", index=False, float_format="%.3f")


def write_sample(
    folder: Path, seed: int, *, tools: Sequence[int] = (1, 4, 6), cuts: int = 30, samples: int = 4000
) -> None:
    """Write a small folder of recordings generated at 50 kHz."""
    for number, stream in zip(tools, np.random.default_rng(seed).spawn(len(tools)), strict=True):
        tool = generator.draw_tool(stream)
        wear = generator.wear_of(tool, cuts, stream)
        recordings = generator.signals(tool, wear, windows=1, samples=samples, rate=RATE, rng=stream)
        write_tool(folder, number, recordings[:, 0], wear)


def _read(cutters: Sequence[Cutter], folder: Path, windowing: Windowing) -> Windows:
    factor = windowing.factor(RATE)
    signals, wear, tools, cuts = [], [], [], []
    problems: list[str] = []
    for cutter in cutters:
        try:
            measured = _wear_by_cut(cutter, windowing)
        except ValueError as error:
            problems.append(f"{cutter.wear}: {error}")
            continue
        for cut, file in cutter.cuts.items():
            try:
                signals.append(_windows_of(file, factor, windowing))
            except ValueError as error:
                problems.append(f"{file.relative_to(folder)}: {error}")
                continue
            wear.append(measured[cut])
            tools.append(cutter.name)
            cuts.append(cut)
    if problems:
        refuse(f"Recordings below {folder} cannot be used", problems)
    worn = np.repeat(np.array(wear), windowing.per_cut)
    return Windows(
        signals=np.concatenate(signals),
        labels=windowing.labels(worn),
        tools=np.repeat(np.array(tools, dtype=np.str_), windowing.per_cut),
        cuts=np.repeat(np.array(cuts, dtype=np.int64), windowing.per_cut),
        wear=worn.astype(np.float32),
        channels=CHANNELS,
        classes=windowing.classes,
        rate=windowing.rate,
        bins=windowing.bins,
    )


def _wear_by_cut(cutter: Cutter, windowing: Windowing) -> dict[int, float]:
    """Return the wear [um] of every cut with a recording; raise ValueError for a faulty wear file."""
    if cutter.wear is None:
        return dict.fromkeys(cutter.cuts, float("nan"))
    flutes = wear_table.read(cutter.wear, list(cutter.cuts), windowing.wear_unit)
    return {cut: float(windowing.wear(values[None])[0]) for cut, values in flutes.items()}


def _windows_of(file: Path, factor: int, windowing: Windowing) -> Signals:
    """Return the windows (per_cut, steps, 7) of one recording.

    They are the middles of its equal parts, without its ends, where the tool enters and leaves the workpiece. Raise
    ValueError for a faulty file.
    """
    try:
        recording = pd.read_csv(file, header=None, dtype=np.float32).to_numpy()
    except pd.errors.EmptyDataError:
        raise ValueError(f"it is empty. Expected {len(CHANNELS)} columns of numbers ({', '.join(CHANNELS)})") from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"it cannot be read as numbers ({str(error).strip()}). Expected {len(CHANNELS)} columns, separated by commas, "
            "without a header"
        ) from None
    if recording.shape[1] != len(CHANNELS):
        raise ValueError(
            f"{len(CHANNELS)} columns were expected ({', '.join(CHANNELS)}), and there are {recording.shape[1]}"
        )
    part, samples = len(recording) // windowing.per_cut, windowing.samples(factor)
    if part < samples:
        raise ValueError(
            f"{windowing.per_cut} windows need {windowing.per_cut * samples} lines, and there are {len(recording)}"
        )
    starts = [number * part + (part - samples) // 2 for number in range(windowing.per_cut)]
    chosen = np.stack([recording[start : start + samples] for start in starts])
    broken = np.argwhere(~np.isfinite(chosen))
    if len(broken):
        window, offset, channel = broken[0]
        line = starts[window] + offset + 1
        raise ValueError(
            f"{len(broken)} values are missing or not finite, the first in line {line}, {CHANNELS[channel]}"
        )
    return windowing.decimated(chosen, factor)
