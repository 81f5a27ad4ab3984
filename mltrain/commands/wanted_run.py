"""Finds the run of a training, and opens it.

A run key finds a run that an earlier start of the same command has created.
"""

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from mltrain.commands.result import Display, Outcome
from mltrain.commands.train_request import Request, Resolved
from mltrain.config import Config
from mltrain.errors import RunNotFound, UsageError, shortened
from mltrain.ownership import job
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import recorded_config
from mltrain.ownership.launcher import Launcher
from mltrain.project import Project
from mltrain.run import adoption, opening
from mltrain.run.checkpoints import checkpoints_of, trained_config
from mltrain.run.key import confirm, find, refuse_unusable_key
from mltrain.run.naming import experiment_for, run_name
from mltrain.run.preparation import creation_seconds
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import FORKED_FROM_TAG, IMPORTED_TAG, MLFLOW_PARENT, PROJECT_TAG, RUN_KEY_TAG, STATUS_TAG

log = logging.getLogger(__name__)

_AUTO = "auto"
_MACHINE_FIELDS = frozenset({"device", "num_threads", "experiment", "run_name"})
"""Keys that may differ between machines, or that only name a new run."""


@dataclass(frozen=True)
class WantedRun:
    """The run of a training: resumed, adopted or new.

    Attributes:
        request: the request to train.
        server: the tracking server.
        launcher: the ``mlflow run`` that started this process, if any.
    """

    request: Request
    server: TrackingClient
    launcher: Launcher | None

    def known(self, experiment: str | None) -> Any | None:
        """Return MLflow's record of the run to resume, if any.

        Args:
            experiment: the configured one; a warning is logged if the launcher chose another.

        Raises:
            RunNotFound, RunHeld, TrackingError, UsageError: the run cannot be used.
        """
        if self.request.resume_run is not None:
            return opening.resumable(self.server, self.request.resume_run, take_over=self.request.take_over)
        if self.launcher is not None:
            found = adoption.adoptable(self.server, self.launcher)
            chosen = self.server.get_experiment(found.info.experiment_id).name
            if experiment is not None and experiment != chosen:
                log.warning(
                    "experiment=%s is not used: the run that MLFLOW_RUN_ID names is in the experiment %s.",
                    experiment,
                    chosen,
                )
        return None

    def open(self, project: str, config: Config) -> TrackedRun:
        """Resume, adopt or create the run.

        Args:
            project: name of the project.
            config: its configuration.

        Raises:
            RunHeld, TrackingError, StorageError: the run cannot be opened.
        """
        request = self.request
        if request.resume_run is not None:
            if request.run_key is not None:
                confirm(self.server, request.resume_run, request.run_key)
            return opening.resume(self.server, request.resume_run, take_over=request.take_over, launcher=self.launcher)
        tags = dict(request.tags)
        if request.parent is not None:
            tags[MLFLOW_PARENT] = request.parent
        if request.fork_run is not None:
            tags |= {MLFLOW_PARENT: request.fork_run, FORKED_FROM_TAG: request.fork_run}
        if request.resume_file is not None:
            tags[IMPORTED_TAG] = request.resume_file.name
        forked = request.fork_run is not None and "run_name" not in request.overrides
        name = None if forked else config.run_name  # a fork does not take its source's name
        generated = run_name(project, request.preset, request.overrides, order=tuple(config.recorded()))
        if self.launcher is not None:
            return adoption.adopt(self.server, self.launcher, name, project, tags, fallback=generated)
        return opening.create(
            self.server,
            experiment_for(project, config.experiment),
            name or generated,
            project,
            tags,
            may_defer=not request.require_tracking and request.run_key is None,
            seconds=creation_seconds(self.server),
        )


def continued(request: Request, server: TrackingClient, launcher: Launcher | None) -> tuple[Request, Any | None]:
    """Return the request with its run key resolved.

    If a run has the key, the request continues it; its configuration must be the command's. Nothing is claimed, created or
    changed.

    Args:
        request: a request with a run key.
        server: the tracking server.
        launcher: the ``mlflow run`` that started this process, if any.

    Raises:
        UsageError: the key is invalid, or belongs to a run of another project or configuration.
        TrackingError: the server does not answer, so the key cannot be looked up.
    """
    if request.resume_run is not None:
        raise UsageError("--run-key finds the run to continue, and --resume-run names it. Expected one of the two.")
    if request.resume_from != "latest" and request.fork_run is None:
        raise UsageError(
            f"--resume-from {request.resume_from} would take the run back each time the command starts. Expected "
            "--run-key without it. Try: mltrain train --resume-run ID --resume-from "
            f"{request.resume_from}"
        )
    key = job.key_of(os.environ) if request.run_key == _AUTO else request.run_key
    refuse_unusable_key(key)
    assert key is not None
    request = replace(request, run_key=key, tags={**request.tags, RUN_KEY_TAG: key})
    resolved = Resolved(request, server)
    project, config = resolved.project, resolved.config
    run = find(server, experiment_for(project.name, config.experiment), launcher, key)
    if run is None:
        return request, None
    _refuse_other_project(run, key, project)
    _refuse_other_configuration(server, run, key, config)
    request = replace(
        request,
        project=project,
        config=config,
        resume_run=run.info.run_id,
        resume_file=None,
        fork_run=None,
        resume_from="latest",
    )
    return request, run


def is_complete(run: Any) -> bool:
    """Whether a run is done and fully uploaded."""
    return bool(run.info.status == "FINISHED" and run.data.tags.get(STATUS_TAG) == "finished")


def complete(server: TrackingClient, run: Any, launcher: Launcher | None, display: Display) -> Outcome:
    """Return the outcome of a run that was already complete.

    The empty run of ``mlflow run`` is nested under it.
    """
    run_id = run.info.run_id
    beside = adoption.nestable(server, launcher, run_id)
    if beside is not None:
        launchers.nest(server, beside, run_id)
    display.resuming(run_id)
    checkpoints = checkpoints_of(server, run)
    newest, best = (next(iter(checkpoints.matching(which)), None) for which in ("latest", "best"))
    key = run.data.tags.get(RUN_KEY_TAG)
    outcome = Outcome(
        run_id=run_id,
        exit_code=0,
        why=f"the run of the key {key!r} is complete, and nothing is left to train",
        newest=newest,
        best=best,
        metrics=newest.metrics if newest is not None else {},
    )
    display.ended(outcome)
    return outcome


def _refuse_other_project(run: Any, key: str, project: Project) -> None:
    recorded = run.data.tags.get(PROJECT_TAG)  # missing if the run was killed too early
    if recorded is not None and recorded != project.name:
        raise UsageError(
            f"The run key {key!r} belongs to run {run.info.run_id}, which trains another project. Expected {recorded!r}, got "
            f"{project.name!r}. Try: another --run-key"
        )


def _refuse_other_configuration(server: TrackingClient, run: Any, key: str, config: Config) -> None:
    try:
        if not recorded_config(artifacts_of(server, run)).get("project"):
            return  # an imported run records its configuration when first trained
        base = trained_config(checkpoints_of(server, run))
    except RunNotFound:  # the run was killed before it recorded anything
        return
    other = {name: both for name, both in config.changes_from(base).items() if _identifies(type(config), name)}
    if other:
        then, now = (shortened([f"{name}={both[index]}" for name, both in other.items()]) for index in (0, 1))
        raise UsageError(
            f"The run key {key!r} belongs to run {run.info.run_id}, which has another configuration. Expected {then}, got "
            f"{now}. Try: another --run-key; or mltrain train --resume-run {run.info.run_id} {now.replace(', ', ' ')}"
        )


def _identifies(kind: type[Config], name: str) -> bool:
    """Whether another value of this key makes another training."""
    return kind.affects_training(name) or name in Config.execution_fields - _MACHINE_FIELDS
