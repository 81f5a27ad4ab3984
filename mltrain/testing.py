"""Assertions and test doubles for tests of users' own trainers.

>>> from mltrain.testing import assert_resumes_exactly
>>> def test_my_project_resumes_exactly():
...     assert_resumes_exactly("my_project.py", {"epochs": 2})

:func:`assert_resumes_exactly` interrupts within one process and takes seconds; :func:`assert_survives_kills` kills real
processes with SIGKILL, resumes them from a tracking store, and starts Python for each.
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
"""Prefixes of metrics that depend on time, which are not compared."""


class MemoryTracker:
    """A tracker that keeps all records in memory.

    Attributes:
        points: key to step to value.
        pictures: (name, step) to picture.
        rows: the table of epochs.
        overtaken: set it to simulate that another process has taken the run over.
    """

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}
        self.pictures: dict[tuple[str, int], Any] = {}
        self.rows: list[dict[str, float | int]] = []
        self.overtaken = False

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Keep the points of one step, except those that depend on time."""
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
    """A checkpoint in memory: the files of a real one, without its manifest."""

    step: int
    epoch: int
    kind: Kind
    metrics: Mapping[str, float]
    files: Mapping[str, bytes]

    def parts(self) -> dict[str, Any]:
        """Return the state, decoded like a real checkpoint."""
        return decode(self.files)


class MemorySaver:
    """A saver that keeps every checkpoint in memory, encoded as files.

    Attributes:
        checkpoints: all checkpoints, oldest first.
        failure: the error of the newest save, if its weights or optimizer state are not finite.
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
            UnsupportedValue: it contains a value that no checkpoint can hold.
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
    """A stop request after a number of steps; ``None`` means never.

    Attributes:
        progress: of the trainer to stop.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.progress = Progress()
        self.checkpoint_wanted = False

    @property
    def requested(self) -> bool:
        """Whether the trainer has reached the step."""
        return self.step is not None and self.progress.step >= self.step


def assert_resumes_exactly(
    project: str | Path | Project, overrides: Mapping[str, Any] | None = None, *, interrupt_at: Sequence[int] = ()
) -> None:
    """Assert that an interrupted and resumed training ends bit-identical.

    Trains once without interruption and once interrupted after each of the given steps. At an interruption the state goes
    through the files of a checkpoint, all random number generators are reseeded, and everything is built again. After every
    step this draws a number from each global generator and compares it (``testing/draws``), to find draws outside the training.

    Args:
        project: a registered name, a file, a folder, or a :class:`~mltrain.project.Project`.
        overrides: keys of its configuration; make the training small.
        interrupt_at: ascending steps. If empty, after the first step, in the middle, and before the last one.

    Raises:
        AssertionError: parts and metrics differ; the message lists them, with the first step at which they do.
        ValueError: a step is out of range.
    """
    found = project if isinstance(project, Project) else find(str(project))
    expected = _in_memory(found, overrides, ())
    if interrupt_at:
        steps = tuple(interrupt_at)
    else:
        steps = tuple(sorted({1, expected.steps // 2, expected.steps - 1} & set(range(1, expected.steps))))
    if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < expected.steps:
        raise ValueError(
            f"interrupt_at={list(steps)} does not fit a training of {expected.steps} steps. Expected ascending numbers "
            f"from 1 to {expected.steps - 1}."
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
    """Assert that a killed and resumed training ends bit-identical.

    Each attempt is a separate process, killed with SIGKILL after its step, and resumed by the run's id from a
    tracking store in ``folder``. It trains steps after the last checkpoint again.

    Args:
        project: a registered name, a file or a folder.
        overrides: keys of its configuration.
        kill_at: one total of steps for each kill; an attempt killed between two checkpoints goes back to the last one.
        folder: an empty folder for the tracking store, staging and logs.

    Returns:
        The id of the run that was killed and resumed.

    Raises:
        AssertionError: parts or metrics differ; or an attempt ended before its kill, or could not be resumed.
    """
    word = str(Path(project).resolve()) if os.path.exists(project) else str(project)  # noqa: PTH110 - no error if too long
    _, reference = _attempt(folder, word, overrides or {}, "undisturbed")
    run_id: str | None = None
    for number, step in enumerate(kill_at, 1):
        code, run_id = _attempt(folder, word, overrides or {}, f"kill-{number}", resume_run=run_id, kill_at=step)
        if code != -signal.SIGKILL:
            raise AssertionError(
                f"Attempt {number} ended with exit code {code}. Expected a SIGKILL after step {step}. "
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
    """The result of a training: final state, metric points and number of steps."""

    parts: Mapping[str, Any]
    points: Mapping[str, Mapping[int, float]]
    steps: int


class _DrawingTracker(MemoryTracker):
    """Draws from every global generator at each step, to reveal draws by other code."""

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
    """Kills its own process after a number of steps."""

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
    """Train in a separate process; return its exit code and the run's id."""
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
        "Usual causes: an object that changes during training but is not in parts() of the step or state= of the Task; "
        "random numbers from a private generator; an order that depends on a set or on the time."
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
    """Yield one line per difference of nested values; compare tensors bit by bit."""
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
