"""Reads checkpoints of other trainers from an MLflow run.

Lightning's ``MLFlowLogger(log_model=…)`` and MLflow's autologging leave files of ``torch.save``. The Trainer of transformers
leaves whole folders (``HF_MLFLOW_LOG_ARTIFACTS``), which MLflow 3 keeps as LoggedModels of the run.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from mltrain.commands.foreign_file import Foreign, content_of, finite, read, refuse_nonfinite
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, UsageError, shortened
from mltrain.run.naming import full_id
from mltrain.store.artifacts import Artifacts
from mltrain.store.names import CHECKPOINT, MANIFEST
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.registry import logged_models
from mltrain.tracking.run_artifacts import artifacts_of

log = logging.getLogger(__name__)

_FILES = (".ckpt", ".pth", ".pt", ".safetensors")
_TRAINER_STATE = "trainer_state.json"
_DEEPEST = 8
_LARGEST = 2**40
_STEP = re.compile(r"(?:checkpoint-|step[=_])(\d+)")
_EPOCH = re.compile(r"epoch[=_](\d+)")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
_NEWEST = re.compile(r"last|latest")


@dataclass(frozen=True)
class _Candidate:
    """A file, or the folder of a Trainer's checkpoint.

    Attributes:
        artifacts: the artifacts that hold it.
        path: path of the file or folder.
        files: names in the folder; empty for a file.
    """

    artifacts: Artifacts
    path: str
    files: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """Sort key by step and epoch in the name."""
        name = PurePosixPath(self.path).name
        numbers = [int(match[1]) if (match := form.search(name)) else 0 for form in (_STEP, _EPOCH)]
        return bool(_NEWEST.search(name)) and not any(numbers), numbers[0], numbers[1], self.path

    def read(self) -> Foreign:
        """Download it to a temporary folder, and read it.

        Raises:
            DamagedCheckpoint: it is damaged, or cannot be read without running code.
        """
        with tempfile.TemporaryDirectory(prefix="mltrain-") as folder:
            wanted = [f"{self.path}/{name}" for name in self.files if _is_wanted(name)] or [self.path]
            for path in wanted:
                Path(folder, PurePosixPath(path).name).write_bytes(self.artifacts.read(path, _LARGEST))
            if self.files:
                return _of_trainer(Path(folder), self.path)
            return finite(Path(folder, PurePosixPath(self.path).name))


@dataclass
class ForeignRun:
    """The newest readable checkpoint of another trainer in a run.

    Attributes:
        foreign: its contents.
        source: the run's id and the path of the checkpoint.
        skipped: the run's other checkpoints, and why they were not taken.
    """

    foreign: Foreign
    source: str
    skipped: list[str] = field(default_factory=list)


def read_run(server: TrackingClient, source: str) -> ForeignRun:
    """Read the newest checkpoint of another trainer in a run.

    Args:
        server: the tracking server.
        source: id of the run, or its first digits; with ``/PATH``, only artifacts below this path are read.

    Raises:
        RunNotFound, TrackingError: the run cannot be reached.
        NoCheckpoint: the run has no such checkpoint.
        DamagedCheckpoint: no checkpoint can be read without running code.
        NonFiniteLoss: its weights or optimizer state are not finite.
    """
    identity, _, below = source.partition("/")
    run = server.run(full_id(server, identity))
    run_id, below = run.info.run_id, below.strip("/")
    places = [artifacts_of(server, run)]
    models = logged_models(server, run.info.experiment_id, run_id)
    places += [open_artifacts(model.artifact_location, server.uri) for model in models]
    candidates = [one for place in places for one in _candidates(place) if _is_below(one.path, below)]
    candidates.sort(key=lambda one: one.order, reverse=True)
    skipped: list[str] = []
    refused: DamagedCheckpoint | None = None
    for number, candidate in enumerate(candidates):
        try:
            foreign = candidate.read()
        except (DamagedCheckpoint, UsageError) as error:
            refused = refused or DamagedCheckpoint(f"{candidate.path} of run {run_id}: {error}")
            skipped.append(f"{candidate.path}: {error}")
            continue
        skipped += [
            f"{other.path}: older; import it with: mltrain import {run_id}/{other.path}"
            for other in candidates[number + 1 :]
        ]
        return ForeignRun(foreign, f"{run_id}/{candidate.path}", skipped)
    if refused is not None:
        raise refused
    raise NoCheckpoint(
        f"Run {run_id} has no checkpoint of another trainer{f' below {below}' if below else ''} among its artifacts. Expected "
        f"a .ckpt, .pth, .pt or .safetensors file. Try: mltrain checkpoints {run_id}, which lists those of mltrain."
    )


def _candidates(artifacts: Artifacts, folder: str = "", depth: int = 0) -> Iterator[_Candidate]:
    entries = artifacts.entries(folder) if depth <= _DEEPEST else []
    files = tuple(entry.name for entry in entries if not entry.is_dir)
    if _TRAINER_STATE in files:
        yield _Candidate(artifacts, folder, files)
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir and not CHECKPOINT.fullmatch(entry.name):
            yield from _candidates(artifacts, path, depth + 1)
        elif not entry.is_dir and entry.name.endswith(_FILES):
            yield _Candidate(artifacts, path)


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _is_wanted(name: str) -> bool:
    return name.endswith(".safetensors") or name in (
        _TRAINER_STATE,
        "pytorch_model.bin",
        "optimizer.pt",
        "scheduler.pt",
    )


def _of_trainer(folder: Path, title: str) -> Foreign:
    """Read the checkpoint folder of a ``transformers`` Trainer."""
    try:
        state: dict[str, Any] = json.loads((folder / _TRAINER_STATE).read_text(encoding="utf-8"))
        step, epoch = int(state["global_step"]), int(state["epoch"] or 0)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{title}/{_TRAINER_STATE} is not a Trainer's state: {error!r:.200}") from None
    weights = _shards(folder, title)
    parts = {
        name: content_of(folder / f"{name}.pt")
        for name in ("optimizer", "scheduler")
        if (folder / f"{name}.pt").is_file()
    }
    foreign = Foreign(weights, **parts, epoch=epoch, step=step, trainer=state)
    refuse_nonfinite(foreign, title)
    return foreign


def read_folder(folder: Path) -> Foreign:
    """Read the folder of a ``transformers`` model or Trainer's checkpoint.

    All shards of the weights are read.

    Raises:
        UsageError: it holds no weights, or not all shards.
        DamagedCheckpoint: a file is damaged, or cannot be read without running code.
        NonFiniteLoss: weights or optimizer state are not finite.
    """
    if (folder / _TRAINER_STATE).is_file():
        return _of_trainer(folder, str(folder))
    foreign = Foreign(_shards(folder, str(folder)))
    refuse_nonfinite(foreign, str(folder))
    return foreign


def _shards(folder: Path, title: str) -> dict[str, torch.Tensor]:
    """Return the weights in all files of a folder.

    Safetensors are preferred.
    """
    if (folder / MANIFEST).is_file():  # its other files hold the optimizer's state
        raise UsageError(f"{title} is a checkpoint of mltrain. Try: mltrain import {title}/model.safetensors")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UsageError(f"{title} holds no weights. Expected model.safetensors.")
    numbered = {(int(name[1]), int(name[2])) for file in files if (name := _SHARD.search(file.name))}
    missing = [str(n) for of in {of for _, of in numbered} for n in range(1, of + 1) if (n, of) not in numbered]
    if missing:
        raise UsageError(
            f"{title} lacks the shards {shortened(missing)} of its weights. Expected all of them in this folder."
        )
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        shard = read(file).model
        if twice := [name for name in shard if name in weights]:
            raise UsageError(
                f"{title} holds {shortened(twice, 5)} in more than one file, again in {file.name}. Expected the shards of one "
                "model. Try: import one of the files."
            )
        weights |= shard
    return weights
