"""What users need to test their own trainers: assertions that break a training and resume it, and doubles in memory.

>>> from mltrain.testing import assert_resumes_exactly
>>> def test_my_project_resumes_exactly():
...     assert_resumes_exactly("my_project.py", {"epochs": 2})

:func:`assert_resumes_exactly` interrupts within one process and takes seconds; :func:`assert_survives_kills` kills real
processes with SIGKILL and resumes them from a tracking store, and takes a start of Python for each.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mltrain import device as devices
from mltrain.checkpoint.codec import decode, encode
from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.snapshot import snapshot
from mltrain.commands.result import Display, Outcome
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import MltrainError, NonFiniteLoss
from mltrain.history import History
from mltrain.project import Project, find
from mltrain.rng import seed_everything
from mltrain.run.checkpoints import open_checkpoints
from mltrain.state import Progress
from mltrain.tracking.client import connect
from mltrain.trainer.loop import Trainer

_CLOCKS = ("system/",)
"""Metrics that tell the time, and are therefore not compared."""


class MemoryTracker:
    """A tracker that keeps what it is given.

    Attributes:
        points: key to step to value.
        pictures: (name, step) to picture.
        rows: the table of epochs.
        overtaken: set it to make the trainer believe that another process has taken the run over.
    """

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}
        self.pictures: dict[tuple[str, int], Any] = {}
        self.rows: list[dict[str, float | int]] = []
        self.overtaken = False

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Keep the points of one step; those that tell the time are not compared, and not kept."""
        for key, value in values.items() if compared else ():
            self.points.setdefault(key, {})[step] = float(value)

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Keep the pictures of one step."""
        self.pictures |= {(name, step): picture for name, picture in pictures.items()}

    def log_epoch(self, history: History) -> None:
        """Keep the table."""
        self.rows = [dict(row) for row in history.rows]


@dataclass(frozen=True)
class Kept:
    """A checkpoint in memory: the files that a real one has, without its manifest."""

    step: int
    epoch: int
    kind: Kind
    metrics: Mapping[str, float]
    files: Mapping[str, bytes]

    def parts(self) -> dict[str, Any]:
        """Return the state, read as from a real checkpoint."""
        return decode(self.files)


class MemorySaver:
    """A saver that keeps every checkpoint in memory, through the files that a real checkpoint has.

    Attributes:
        checkpoints: all of them, oldest first.
        failure: why the newest was not kept: its weights or optimizer state are not finite.
    """

    def __init__(self) -> None:
        self.checkpoints: list[Kept] = []
        self.failure: MltrainError | None = None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        kind: Kind,
        extra: Mapping[str, bytes],
        data: Mapping[str, str],
    ) -> None:
        """Keep a state.

        Raises:
            UnsupportedValue: it holds something that no checkpoint can hold.
        """
        copied = snapshot(state, HostBuffers())
        wrong = nonfinite(copied.tree, copied.tensors)
        self.failure = NonFiniteLoss(f"Not finite at step {step}: {', '.join(wrong)}") if wrong else None
        if wrong:
            return
        encoded = encode(copied)
        files = {file.name: b"".join(bytes(piece) for piece in file.content) for file in encoded.files}
        self.checkpoints.append(Kept(step, epoch, kind, dict(metrics), {**files, **extra}))

    def peek(self) -> dict[str, Any] | None:
        """Return the state of the newest checkpoint, or ``None``."""
        return self.checkpoints[-1].parts() if self.checkpoints else None


class StopAt:
    """A request to stop once a trainer has done so many steps. If ``None``, never.

    Attributes:
        progress: of the trainer that is to be stopped.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.progress = Progress()
        self.checkpoint_wanted = False

    @property
    def requested(self) -> bool:
        """Whether the step has come."""
        return self.step is not None and self.progress.step >= self.step


def assert_resumes_exactly(
    project: str | Path | Project, overrides: Mapping[str, Any] | None = None, *, interrupt_at: Sequence[int] = ()
) -> None:
    """Assert that a training which is interrupted and resumed ends as one that was left alone, bit by bit.

    Trains once undisturbed and once interrupted after each of the given steps. At an interruption the state goes through
    the files of a checkpoint, all random number generators are spoilt, and everything is built anew. After every step one
    number is drawn from each global generator and compared (``testing/draws``), so a draw outside of the training shows.

    Args:
        project: a registered name, a file, a folder, or a :class:`~mltrain.project.Project`.
        overrides: keys of its configuration; make it small.
        interrupt_at: steps, ascending. If ``None``, after the first step, in the middle, and before the last one.

    Raises:
        AssertionError: what differs, part by part and metric by metric, with the first step at which it does.
        ValueError: there is no such step to interrupt at.
    """
    found = project if isinstance(project, Project) else find(str(project))
    expected = _in_memory(found, overrides, ())
    if interrupt_at:
        steps = tuple(interrupt_at)
    else:
        steps = tuple(sorted({1, expected.steps // 2, expected.steps - 1} & set(range(1, expected.steps))))
    if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < expected.steps:
        raise ValueError(
            f"This training has {expected.steps} steps, so it cannot be interrupted after steps {list(steps)}; "
            f"ascending numbers from 1 to {expected.steps - 1} were expected."
        )
    got = _in_memory(found, overrides, steps)
    _compare(expected, got, f"An interruption after step {', '.join(map(str, steps))}")


def assert_survives_kills(
    project: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    kill_at: Sequence[int],
    folder: Path,
) -> str:
    """Assert that a training whose process is killed and resumed ends as one that was left alone, bit by bit.

    Each attempt is a process of its own, killed with SIGKILL when it has done the step, and resumed by the run's id from a
    tracking store in ``folder``. What was not saved by then is trained again.

    Args:
        project: a registered name, a file or a folder.
        overrides: keys of its configuration.
        kill_at: one total of steps for each kill; a kill between two checkpoints leads behind the last one.
        folder: an empty folder for the tracking store, staging and logs.

    Returns:
        The id of the run that was killed and resumed.

    Raises:
        AssertionError: what differs; or an attempt that was to be killed ended before that, or could not be resumed.
    """
    word = str(Path(project).resolve()) if os.path.exists(project) else str(project)  # noqa: PTH110 - no error if too long
    _, reference = _attempt(folder, word, overrides or {}, "undisturbed")
    run_id: str | None = None
    for number, step in enumerate(kill_at, 1):
        code, run_id = _attempt(folder, word, overrides or {}, f"kill-{number}", resume_run=run_id, kill_at=step)
        if code != -signal.SIGKILL:
            raise AssertionError(
                f"Attempt {number} was to be killed after step {step} and ended with exit code {code}. "
                f"See {folder / f'kill-{number}.log'}"
            )
    code, run_id = _attempt(folder, word, overrides or {}, "resumed", resume_run=run_id)
    if code != 0:
        raise AssertionError(f"The resumed training ended with exit code {code}. See {folder / 'resumed.log'}")
    expected, got = (_recorded(folder, one) for one in (reference, run_id))
    _compare(expected, got, f"A SIGKILL after step {', '.join(map(str, kill_at))}")
    return run_id


@dataclass(frozen=True)
class _Trained:
    """What is left of a training: its state, what it recorded, and how many steps it had."""

    parts: Mapping[str, Any]
    points: Mapping[str, Mapping[int, float]]
    steps: int


class _DrawingTracker(MemoryTracker):
    """Draws from every global generator with each step, as trainings do, so that a draw by anybody else shows."""

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        super().log_metrics(values, step, compared=compared)
        if compared:
            draws = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: S311 - what a training draws
            self.points.setdefault("testing/draws", {})[step] = draws


def _in_memory(project: Project, overrides: Mapping[str, Any] | None, interrupt_at: Sequence[int]) -> _Trained:
    files = [project.config_file] if project.config_file is not None else []
    config = project.config.load(files, overrides=overrides)
    tracker, saver = _DrawingTracker(), MemorySaver()
    for stop_at in (*interrupt_at, None):
        stop = StopAt(stop_at)
        devices.set_up(config.num_threads, config.deterministic, config.device)
        seed_everything(config.seed)
        task = project.build(config)
        trainer = Trainer(task, config, tracker, saver, stop)
        if saver.checkpoints:
            _spoil_random_numbers()
            trainer.restore(saver.checkpoints[-1].parts())
        else:
            seed_everything(config.seed)
        stop.progress = trainer.progress
        for _ in trainer.steps():
            pass
    return _Trained(saver.checkpoints[-1].parts(), tracker.points, saver.checkpoints[-1].step)


def _spoil_random_numbers() -> None:
    seed_everything(random.SystemRandom().randrange(2**32))


class _KillAt(Display):
    """Kills its own process once a training has done so many steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def opened(self, run: Any, where: str) -> None:
        print(f"run_id={run.id}", flush=True)

    def stepped(self, trainer: Trainer) -> None:
        if trainer.progress.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def ended(self, outcome: Outcome) -> None:
        print(outcome.why, flush=True)


def _attempt(
    folder: Path,
    project: str,
    overrides: Mapping[str, Any],
    name: str,
    *,
    resume_run: str | None = None,
    kill_at: int = 0,
) -> tuple[int, str]:
    """Train in a process of its own and return its exit code and the run's id."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    request = {"project": project, "overrides": {k: str(v) for k, v in overrides.items()}, "resume_run": resume_run}
    with log.open("wb") as output:
        code = subprocess.run(
            [sys.executable, "-m", "mltrain.testing", json.dumps(request), str(kill_at)],
            env={**os.environ, **_places(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    said = log.read_text(encoding="utf-8", errors="replace")
    ids = [line.removeprefix("run_id=") for line in said.splitlines() if line.startswith("run_id=")]
    if not ids or (code != 0 and not kill_at):
        raise AssertionError(f"The training ended with exit code {code}:\n{said[-2000:]}")
    return code, ids[0]


def _places(folder: Path) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{(folder / 'mlflow.db').resolve()}",
        "MLTRAIN_HOME": str((folder / "home").resolve()),
    }


def _recorded(folder: Path, run_id: str) -> _Trained:
    server = connect(_places(folder)["MLFLOW_TRACKING_URI"])
    manifest, parts = open_checkpoints(run_id, server).load("latest")
    keys = [key for key in server.run(run_id).data.metrics if not key.startswith(_CLOCKS)]
    points = {key: {p.step: p.value for p in server.client.get_metric_history(run_id, key)} for key in keys}
    return _Trained(parts, points, manifest.step)


def _compare(expected: _Trained, got: _Trained, event: str) -> None:
    metrics = sorted(_metric_differences(expected.points, got.points))
    parts = list(differences(expected.parts, got.parts))
    if not (metrics or parts):
        return
    lines = [f"{event} changed the training."]
    if metrics:
        lines.append(f"The first metrics that differ ({len(metrics)} in all):")
        lines += [f"  {said}" for _, said in metrics[:5]]
    if parts:
        lines.append(f"Parts of the last checkpoint that differ ({len(parts)} in all):")
        lines += [f"  {said}" for said in parts[:10]]
    lines.append(
        "Usual causes: an object that changes while training and is not among parts() of the step or state= of the Task; "
        "random numbers from a generator of its own; an order that follows from a set or from the time."
    )
    raise AssertionError("\n".join(lines))


def _metric_differences(
    expected: Mapping[str, Mapping[int, float]], got: Mapping[str, Mapping[int, float]]
) -> Iterator[tuple[int, str]]:
    for key in expected.keys() | got.keys():
        before, after = expected.get(key, {}), got.get(key, {})
        for step in before.keys() | after.keys():
            one, other = before.get(step), after.get(step)
            if one is None or other is None:
                yield step, f"{key} at step {step}: {'missing' if other is None else 'not expected'}"
            elif one != other and not (math.isnan(one) and math.isnan(other)):
                yield step, f"{key} at step {step}: {other!r} instead of {one!r}"


def differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    """Yield where two nestings differ, one line each, with the path to it; tensors are compared bit by bit."""
    if type(expected) is not type(got):
        yield f"{path}: {type(got).__name__} instead of {type(expected).__name__}"
    elif isinstance(expected, Mapping):
        for key in [*expected, *(key for key in got if key not in expected)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in got or key not in expected:
                yield f"{inner}: {'missing' if key not in got else 'not expected'}"
            else:
                yield from differences(expected[key], got[key], inner)
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            yield f"{path}: {len(got)} items instead of {len(expected)}"
            return
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(expected, torch.Tensor):
        yield from _tensor_differences(expected, got, path)
    elif isinstance(expected, (np.ndarray, np.generic)):
        if expected.dtype != got.dtype or expected.shape != got.shape or expected.tobytes() != got.tobytes():
            yield f"{path}: other values"
    elif expected != got and not (expected != expected and got != got):  # NaN is equal to NaN here
        yield f"{path}: {got!r:.60} instead of {expected!r:.60}"


def _tensor_differences(expected: torch.Tensor, got: torch.Tensor, path: str) -> Iterable[str]:
    if expected.dtype != got.dtype or expected.shape != got.shape:
        yield f"{path}: {got.dtype} {tuple(got.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
        return
    one, other = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (expected, got))
    if not one.equal(other):
        count = int((one.view(-1, expected.itemsize) != other.view(-1, expected.itemsize)).any(1).sum())
        yield f"{path}: {count} of {expected.numel()} values differ"


def _main(request: str, kill_at: str) -> None:
    run_training(Request(**json.loads(request)), _KillAt(int(kill_at)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
