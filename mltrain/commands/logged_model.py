"""Checkpoints as MLflow models, for programs that know nothing of mltrain."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import configured, first_usable
from mltrain.commands.evaluate import Rebuilt, fill, rebuild
from mltrain.errors import MltrainError, UsageError
from mltrain.project import Project
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.naming import short
from mltrain.task import Task
from mltrain.tracking import mlflow_model, names
from mltrain.tracking.client import TrackingClient, connect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, and the LoggedModel that it was made from."""

    name: str
    version: int
    model_id: str


def register(
    run_id: str, name: str, *, alias: str | None = None, checkpoint: str = "best", project: str | None = None
) -> Registered:
    """Make a checkpoint a version of a registered model, with its weights in the project's predictor.

    Builds the project, so its data have to be where the run had them.

    Args:
        run_id: the run.
        name: of the registered model.
        alias: that this version gets, such as ``champion``.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.
        project: in place of the recorded one.

    Raises:
        UsageError: name or alias is none, or the project states no predictor, or ``torch.export`` cannot trace it.
        NoCheckpoint, StateMismatch, DataError: the model cannot be built.
        TrackingError, StorageError: MLflow does not take it.
    """
    mlflow_model.refuse_name(name, alias)
    return registered(registrable(run_id, checkpoint=checkpoint, project=project), name, alias)


def registrable(run_id: str, *, checkpoint: str = "best", project: str | None = None) -> Rebuilt:
    """Build the task that :func:`register` exports; a project without a predictor is refused before anything is downloaded.

    Raises:
        UsageError: the project states no predictor.
        NoCheckpoint, StateMismatch, DataError: the model cannot be built.
    """
    return rebuild(connect(), run_id, checkpoint, None, project, _refuse_without_predictor)


def registered(rebuilt: Rebuilt, name: str, alias: str | None) -> Registered:
    """Make a version of a registered model from what :func:`registrable` built; see :func:`register`."""
    server = connect()
    source = _source(server, rebuilt.manifest)
    model_id = _logged(server, rebuilt.task, source, rebuilt.project.name)
    return Registered(name, mlflow_model.register(server, source, model_id, name, alias), model_id)


def log_models(
    server: TrackingClient, run_id: str, task: Task, project: str, which: Literal["best", "kept"]
) -> list[str]:
    """Make LoggedModels of the best or of all checkpoints of a run that has ended; return their ids.

    The task takes the weights of the last of them. What cannot be done is a warning: the run has the checkpoints.
    """
    made: list[str] = []
    try:
        checkpoints = open_checkpoints(run_id, server)
        wanted = checkpoints.matching("best")[:1] if which == "best" else checkpoints.all()
        for manifest in wanted:
            _, (parts, _) = first_usable(checkpoints.store, [manifest], lambda one: configured(checkpoints.store, one))
            fill(task, parts)
            made.append(_logged(server, task, _source(server, manifest), project))
    except (MltrainError, OSError) as error:
        log.warning(
            "Of the run's checkpoints %d became LoggedModels, and no more: %s Try: mltrain pull %s --to DIR --register NAME",
            len(made),
            error,
            run_id,
        )
    return made


def _refuse_without_predictor(project: Project, task: Task) -> None:
    if task.predictor is None:
        raise UsageError(
            f"The project {project.name!r} states no input and output of its model. Expected Task(..., predictor=...), which "
            "returns a module and an example of its input."
        )


def _source(server: TrackingClient, manifest: Manifest) -> mlflow_model.Source:
    metrics = {names.key(name): value for name, value in manifest.metrics.items()}
    experiment = server.run(manifest.run_id).info.experiment_id
    return mlflow_model.Source(manifest.run_id, experiment, manifest.name, manifest.step, metrics)


def _logged(server: TrackingClient, task: Task, source: mlflow_model.Source, project: str) -> str:
    assert task.predictor is not None
    module, example = task.predictor()
    with tempfile.TemporaryDirectory(prefix="mltrain-") as folder:
        mlflow_model.write(module.cpu(), example.cpu(), Path(folder) / "model")
        return mlflow_model.log(server, source, mlflow_model.model_name(short(project)), Path(folder) / "model")
