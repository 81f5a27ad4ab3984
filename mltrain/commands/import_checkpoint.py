"""Imports checkpoints of other programs as new runs."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mltrain import device as devices
from mltrain.commands.checks import policy_of
from mltrain.commands.foreign_file import Foreign, finite
from mltrain.commands.foreign_run import read_folder, read_run
from mltrain.config import Config
from mltrain.errors import StateMismatch, UsageError, counted
from mltrain.manager import CheckpointManager
from mltrain.metrics import Curves
from mltrain.ownership.run_folder import grace_seconds
from mltrain.project import Project
from mltrain.provenance import fingerprint
from mltrain.restoring.modules import fitted
from mltrain.rng import seed_everything
from mltrain.run import opening
from mltrain.run.naming import experiment_for
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.state import TrainState
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import IMPORTED_TAG
from mltrain.trainer.loop import Trainer

log = logging.getLogger(__name__)

_PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.", "model.module.")


@dataclass
class Report:
    """The parts of a file that were taken and left.

    ``fresh`` names the parts of the project's task that keep their initial state.
    """

    taken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    run_id: str = ""
    checkpoint: str = ""


def import_file(
    file: Path, server: TrackingClient, project: Project | None, overrides: Mapping[str, Any], experiment: str | None
) -> Report:
    """Import a file or folder as the first checkpoint.

    With a project, the weights are loaded into the project's model, and the run can be resumed like any other. Without one,
    the parts are stored unchanged, for ``mltrain train PROJECT --resume-run`` and :class:`CheckpointManager`.

    Raises:
        UsageError, DamagedCheckpoint: the file cannot be used.
        NonFiniteLoss: its weights or optimizer state are not finite.
        StateMismatch: the weights do not fit the project's model.
    """
    config = _config(project, overrides)
    foreign = read_folder(file) if file.is_dir() else finite(file)
    return _imported(foreign, file.stem, file.name, server, project, config, experiment)


def import_run(
    source: str, server: TrackingClient, project: Project | None, overrides: Mapping[str, Any], experiment: str | None
) -> Report:
    """Import another trainer's checkpoint; see :func:`import_file`.

    Args:
        source: id of the run; with ``/PATH``, only artifacts below this path are read.
        server: the tracking server of both runs.
        project: the project that the weights belong to, if any.
        overrides: keys of the project's configuration.
        experiment: name of the new run's experiment. If ``None``, the project's.

    Raises:
        RunNotFound, NoCheckpoint, DamagedCheckpoint, NonFiniteLoss, StateMismatch: the checkpoint cannot be used.
    """
    config = _config(project, overrides)  # refuse an invalid one before the run's files are downloaded
    found = read_run(server, source)
    name = server.run(found.source.partition("/")[0]).info.run_name
    report = _imported(found.foreign, name, found.source, server, project, config, experiment)
    report.taken.insert(0, f"from {found.source}")
    report.left += found.skipped
    return report


def _config(project: Project | None, overrides: Mapping[str, Any]) -> Config | None:
    """Return the project's configuration, or ``None`` without a project."""
    if project is None:
        return None
    return project.config.load([project.config_file] if project.config_file else [], overrides=overrides)


def _imported(
    foreign: Foreign,
    name: str,
    source: str,
    server: TrackingClient,
    project: Project | None,
    config: Config | None,
    experiment: str | None,
) -> Report:
    report = Report()
    if project is None or config is None:
        run = opening.create(server, experiment, name, "imported", {IMPORTED_TAG: source})
        with _withdrawn_if_it_fails(run) as threads:
            manager = _stored(run, foreign, report, threads)
        return _reported(run, manager, report)
    devices.set_up(config)
    seed_everything(config.seed)
    task = project.build(config)
    experiment = experiment_for(project.name, experiment or config.experiment)
    run = opening.create(server, experiment, name, project.name, {IMPORTED_TAG: source})
    with _withdrawn_if_it_fails(run) as threads:
        run.record_start(config.resolved(), config.recorded(), project.name)
        run.attempt.versions, run.attempt.code = fingerprint.versions(), fingerprint.code(project.place)
        run.attempt.data = fingerprint.data(config.data_places())
        policy = policy_of(config, task.policy)
        manager = CheckpointManager(run, policy=policy, metric=config.best_metric, mode=config.best_mode)
        threads.callback(manager.abandon)
        trainer = Trainer(task, config, run, manager, StopRequest(), data=run.attempt.data)
        fit(foreign, trainer, report)
        trainer.save("imported")
        manager.wait()
    run.record.attempt()
    return _reported(run, manager, report)


@contextmanager
def _withdrawn_if_it_fails(run: TrackedRun) -> Iterator[ExitStack]:
    """Delete the new run if its import fails.

    It fails if the checkpoint does not fit or Ctrl+C ends it.

    Yields:
        What stops the threads of the import then.
    """
    with ExitStack() as threads:
        try:
            yield threads
        except BaseException as error:
            threads.close()
            run.withdraw(f"{type(error).__name__}: {error}"[:500])
            raise
        threads.pop_all()


def _stored(run: TrackedRun, foreign: Foreign, report: Report, threads: ExitStack) -> CheckpointManager:
    run.record_start({}, {}, "")
    manager = CheckpointManager(run)
    threads.callback(manager.abandon)
    history = {"rows": foreign.history} if foreign.history else None
    parts = {"model": foreign.model, "optimizer": foreign.optimizer, "scheduler": foreign.scheduler, "history": history}
    state = {name: part for name, part in parts.items() if part}
    if foreign.trainer is not None:
        state["trainer"] = foreign.trainer
        _record_curves(run, foreign.trainer)
    state["progress"] = {"step": foreign.step, "epoch": foreign.epoch, "batch": 0}
    manager.save(state, step=foreign.step, epoch=foreign.epoch, kind="imported")
    manager.wait()
    report.taken += [f"{name}: unchanged" for name in state]
    report.left += foreign.ignored
    return manager


def _record_curves(run: TrackedRun, trainer: Mapping[str, Any]) -> None:
    """Record a Trainer's log, each key and step once."""
    curves = Curves(run.log_metrics)
    for entry in trainer.get("log_history") or []:
        values = {key: value for key, value in entry.items() if key != "step" and isinstance(value, int | float)}
        curves.log(values, int(entry["step"]))


def _reported(run: TrackedRun, manager: CheckpointManager, report: Report) -> Report:
    failure = manager.failure
    manager.abandon()
    run.close("FAILED" if failure else "FINISHED", str(failure or "imported"), grace_seconds())
    if failure is not None:
        raise failure
    report.run_id = run.id
    staged = manager.committer.newest_staged
    report.checkpoint = staged.name if staged is not None else ""
    return report


def fit(foreign: Foreign, trainer: Trainer, report: Report) -> None:
    """Load a file's contents into a training, and report them.

    Raises:
        UsageError: the project has no model to load them into.
        StateMismatch: the weights do not fit the model.
    """
    parts = trainer.state.parts
    model = parts.get("model")
    if not isinstance(model, nn.Module):
        raise UsageError("The project's step has no part called 'model'. Expected one to load the weights into.")
    weights, prefix = _renamed(foreign.model, model)
    model.load_state_dict(weights)
    report.taken.append(f"model: {counted(len(weights), 'tensor')}" + (f", {prefix}" if prefix else ""))
    report.fresh = [name for name in trainer.task.parts() if name != "model"]
    for name in ("optimizer", "scheduler"):
        state, part = getattr(foreign, name), parts.get(name)
        if state is None or part is None:
            report.left.append(f"{name}: not in the {'file' if state is None else 'project'}")
            continue
        try:
            TrainState({name: part}).restore({name: state})
            report.taken.append(name)
            report.fresh.remove(name)
        except StateMismatch as error:
            report.left.append(f"{name}: does not fit ({error})")
    epoch = foreign.epoch
    step = foreign.step or epoch * (trainer.batches or 0)
    trainer.progress.load_state_dict({"step": step, "epoch": epoch, "batch": 0})
    loader = trainer.task.loader
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": 0})
    report.taken.append(f"progress: epoch {epoch}, step {step}")
    if foreign.history:
        trainer.history.load_state_dict({"rows": foreign.history})
        report.taken.append(f"history: {counted(len(foreign.history), 'epoch')}")
    report.left += foreign.ignored


def _renamed(weights: Mapping[str, torch.Tensor], model: nn.Module) -> tuple[dict[str, Any], str]:
    """Match names to a model's by adding or removing prefixes."""
    own = {key.replace("_orig_mod.", "") for key in model.state_dict()}
    best, change = dict(weights), ""
    for prefix in _PREFIXES:
        stripped = {key.removeprefix(prefix): value for key, value in weights.items()}
        if len(own & stripped.keys()) > len(own & best.keys()):
            best, change = stripped, f"prefix {prefix!r} removed"
        added = {prefix + key: value for key, value in weights.items()}
        if len(own & added.keys()) > len(own & best.keys()):
            best, change = added, f"prefix {prefix!r} added"
    try:
        return fitted(best, model), change
    except StateMismatch as error:
        raise StateMismatch(
            "the project's model",
            missing=error.missing,
            unexpected=error.unexpected,
            reshaped=error.reshaped,
            advice="Give the configuration of the weights as key=value, or import the file without a project.",
        ) from None
