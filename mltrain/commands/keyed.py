"""Finds or starts the run of a run key."""

import os
from dataclasses import replace
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
from mltrain.run import adoption
from mltrain.run.checkpoints import checkpoints_of, trained_config
from mltrain.run.key import find, refuse_unusable_key
from mltrain.run.naming import experiment_for
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import PROJECT_TAG, RUN_KEY_TAG, STATUS_TAG

AUTO = "auto"
_MACHINE_FIELDS = frozenset({"device", "num_threads", "experiment", "run_name"})
"""Keys that may differ between machines, or that only name a new run."""


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
    key = job.key_of(os.environ) if request.run_key == AUTO else request.run_key
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
