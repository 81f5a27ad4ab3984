"""Exports checkpoints as MLflow models, for programs without mltrain."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import configured, first_usable
from mltrain.commands.evaluate import Rebuilt, fill, rebuild
from mltrain.errors import MltrainError, UsageError, sentence
from mltrain.project import Project
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.naming import short
from mltrain.task import Task
from mltrain.tracking import mlflow_model, names
from mltrain.tracking.client import TrackingClient, connect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """A version of a registered model and its LoggedModel."""

    name: str
    version: int
    model_id: str


def registrable(run_id: str, checkpoint: str) -> Rebuilt:
    """Build the task for :func:`registered` to export.

    Its data must be where the run had them.

    Args:
        run_id: the run's id.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.

    Raises:
        UsageError: the project has no predictor; raised before anything is downloaded.
        NoCheckpoint, StateMismatch, DataError: the model cannot be built.
    """
    return rebuild(run_id, checkpoint, None, None, _refuse_without_predictor)


def registered(rebuilt: Rebuilt, name: str, alias: str | None) -> Registered:
    """Register the task that :func:`registrable` built, as a model version.

    The model is the project's predictor with the checkpoint's weights.

    Args:
        rebuilt: the task.
        name: name of the registered model.
        alias: an alias for the new version, such as ``champion``.

    Raises:
        UsageError: ``torch.export`` cannot trace the predictor.
        TrackingError, StorageError: MLflow refuses the model.
    """
    server = connect()
    source = _source(server, rebuilt.manifest)
    model_id = _logged(server, rebuilt.task, source, rebuilt.project.name)
    return Registered(name, mlflow_model.register(server, source, model_id, name, alias), model_id)


def log_models(
    server: TrackingClient, run_id: str, task: Task, project: str, which: Literal["best", "kept"]
) -> list[str]:
    """Make LoggedModels of an ended run's checkpoints; return their ids.

    The task ends up with the weights of the last one. A failure is logged as a warning, since the run has the checkpoints.
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
            "Only %d checkpoints of the run became LoggedModels: %s Try: mltrain pull %s --to DIR --register NAME",
            len(made),
            sentence(str(error)),
            run_id,
        )
    return made


def _refuse_without_predictor(project: Project, task: Task) -> None:
    if task.predictor is None:
        raise UsageError(
            f"The project {project.name!r} has no predictor. Expected Task(..., predictor=...), a function that "
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
