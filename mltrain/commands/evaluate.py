"""Rebuilds the task of a run, and evaluates a checkpoint."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mltrain import device as devices
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import configuration, configured, first_usable
from mltrain.checkpoint.verified_files import Arrived
from mltrain.commands.train_request import recorded_project
from mltrain.config import Config
from mltrain.errors import NoCheckpoint, StateMismatch, UsageError
from mltrain.metrics import floats
from mltrain.ownership.attempts import recorded_config
from mltrain.project import Project, find
from mltrain.restoring.modules import fitted
from mltrain.rng import own_rng, seed_everything
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.stage_outputs import fetched_inputs
from mltrain.steps import HasParts
from mltrain.store.folders import refuse_unwritable
from mltrain.task import Task, prepare_step
from mltrain.tracking.client import connect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of an evaluated checkpoint.

    ``report`` is the folder of the project's report. ``None`` if no report was requested or the project writes none.
    """

    run_id: str
    manifest: Manifest
    metrics: Mapping[str, float]
    report: Path | None = None


@dataclass(frozen=True)
class Rebuilt:
    """A task rebuilt from a checkpoint."""

    run_id: str
    manifest: Manifest
    project: Project
    config: Config
    task: Task


def evaluate(
    run_id: str,
    *,
    checkpoint: str = "best",
    overrides: Mapping[str, Any] | None = None,
    project: str | None = None,
    to: Path | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on the run's or other data.

    The run is not changed.

    Args:
        run_id: the run's id.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.
        overrides: keys of the configuration, such as other data locations.
        project: the project to use. If ``None``, the recorded one.
        to: a folder for the project's report: tables and pictures. If the project has no report, a warning is logged.

    Raises:
        NoCheckpoint, StateMismatch, DataError: the checkpoint cannot be evaluated.
    """
    return measured(rebuilt(run_id, checkpoint, overrides, project, to), to)


def rebuilt(
    run_id: str,
    checkpoint: str,
    overrides: Mapping[str, Any] | None,
    project: str | None,
    to: Path | None,
    arrived: Arrived | None = None,
) -> Rebuilt:
    """Rebuild the task that :func:`measured` evaluates; see :func:`evaluate`.

    ``arrived`` is called with each piece of the checkpoint's files.
    """
    if to is not None:
        refuse_unwritable(to, "Choose another folder: --to FOLDER.")

    def measurable(found: Project, task: Task) -> None:
        if task.evaluate is None and (task.report is None or to is None):
            raise UsageError(f"The project {found.name!r} has no evaluate() to call.")

    return rebuild(run_id, checkpoint, overrides, project, measurable, arrived)


def measured(rebuilt: Rebuilt, to: Path | None) -> Evaluation:
    """Evaluate a rebuilt task; see :func:`evaluate`."""
    config, task = rebuilt.config, rebuilt.task
    with torch.no_grad(), own_rng(config.seed), devices.mixing(devices.chosen(config.device)):
        metrics: dict[str, float] = {}
        if task.report is not None and to is not None:
            to.mkdir(parents=True, exist_ok=True)
            metrics = floats(task.report(to), "report()")
        elif task.evaluate is not None:
            metrics = floats(task.evaluate(), "evaluate()")
    if task.report is None and to is not None:
        log.warning(
            "The project %r has no report, so nothing is written to %s. Expected a task with one. Try: Task(..., report=...)",
            rebuilt.project.name,
            to,
        )
    return Evaluation(rebuilt.run_id, rebuilt.manifest, metrics, to if task.report is not None else None)


def rebuild(
    run_id: str,
    checkpoint: str,
    overrides: Mapping[str, Any] | None,
    project: str | None,
    refuse: Callable[[Project, Task], None],
    arrived: Arrived | None = None,
) -> Rebuilt:
    """Rebuild a run's task with a checkpoint's configuration and weights.

    Args:
        run_id: the run's id.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.
        overrides: keys of the configuration.
        project: the project to use. If ``None``, the recorded one.
        refuse: raises an error if the caller cannot use the task; called before any weights are downloaded.
        arrived: called with each piece of the checkpoint's files. If ``None``, nothing is.
    """
    server = connect()
    checkpoints = open_checkpoints(run_id, server)
    if arrived is not None:
        checkpoints.store.watch(arrived)
    run_id = checkpoints.store.run_id
    recorded = recorded_config(checkpoints.store.artifacts)
    found = (
        find(project)
        if project
        else recorded_project(server.run(run_id), recorded, f"mltrain evaluate {run_id} PROJECT")
    )
    candidates = checkpoints.matching(checkpoint) or (checkpoints.matching("latest") if checkpoint == "best" else [])
    if not candidates:
        raise NoCheckpoint(checkpoints.no_match_message(checkpoint))
    inputs = fetched_inputs(server, server.run(run_id), overrides or ())

    def task_of(params: Mapping[str, Any] | None) -> tuple[Config, Task]:
        base = params or recorded["config"]
        files = [found.config_file] if found.config_file is not None and not base else []
        config = found.config.load(files, overrides={**inputs, **(overrides or {})}, base=base)
        return config, built(found, config)

    manifest, params = first_usable(checkpoints.store, candidates, lambda one: configuration(checkpoints.store, one))
    config, task = task_of(params)
    refuse(found, task)
    loaded, (parts, own_params) = first_usable(
        checkpoints.store, candidates, lambda one: configured(checkpoints.store, one)
    )
    # The first choice is damaged, and the next one may have another configuration.
    if loaded.id != manifest.id and own_params != params:
        config, task = task_of(own_params)
    fill(task, parts)
    return Rebuilt(run_id, loaded, found, config, task)


def built(project: Project, config: Config) -> Task:
    """Build a project's task.

    Raises:
        ConfigError: ``device`` has no effect on the step.
    """
    devices.set_up(config)
    seed_everything(config.seed)
    task = project.build(config)
    prepare_step(task, config.model_copy(update={"amp": "off"}), devices.chosen(config.device))
    return task


def fill(task: Task, parts: Mapping[str, Any]) -> None:
    """Load a checkpoint's parts into a task.

    Raises:
        StateMismatch: a part does not fit the task.
    """
    own = {**(task.step.parts() if isinstance(task.step, HasParts) else {}), **task.state}
    for name, part in own.items():
        if name not in parts or name in ("optimizer", "scheduler", "scaler", "metrics"):
            continue
        state = fitted(parts[name], part, name) if isinstance(part, torch.nn.Module) else parts[name]
        try:
            part.load_state_dict(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise StateMismatch(f"the part {name!r}: {type(error).__name__}: {error}") from error
