"""Makes MLflow models from checkpoints and registers them.

They are written with ``torch.export`` and contain no pickle. They are for other programs: ``mltrain`` never reads them itself.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mltrain.errors import MltrainError, UsageError
from mltrain.redaction import first_line
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import DeferredClient, Refusal
from mltrain.tracking.registry import delete_logged_model, logged_models, model_versions
from mltrain.tracking.tags import MADE_FROM_TAG

_REFUSED = re.compile(r"[/:.%\"'\x00-\x1f]")
"""Characters that MLflow rejects in a model's name."""
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True)
class Source:
    """The source checkpoint of a model.

    Attributes:
        run_id: of its run.
        experiment_id: of its run.
        checkpoint: its name.
        step: optimizer steps done.
        metrics: the checkpoint's metrics by their keys in the run.
    """

    run_id: str
    experiment_id: str
    checkpoint: str
    step: int
    metrics: Mapping[str, float]


def model_name(project: str) -> str:
    """Return the name of a project's LoggedModels.

    It is the project's name without characters that MLflow rejects.
    """
    return _REFUSED.sub("_", project) or "model"


def refuse_name(name: str, alias: str | None) -> None:
    """Raise an error for an invalid model name or alias.

    Raises:
        UsageError: MLflow rejects the name or alias.
    """
    if not name.strip() or _REFUSED.search(name):
        raise UsageError(f"--register {name!r:.80} is not a valid model name. Expected one without / : . % and quotes.")
    number = alias is not None and re.fullmatch(r"v?\d+", alias, re.IGNORECASE)
    if alias is not None and (not _ALIAS.fullmatch(alias) or number or alias.lower() == "latest"):
        raise UsageError(
            f"--alias {alias!r:.80} is not a valid alias. Expected letters, digits, - and _, but not latest or a version "
            "such as v1."
        )


def write(module: nn.Module, example: Tensor, folder: Path) -> None:
    """Write a module as an MLflow model with ``torch.export``.

    It has the flavors ``pytorch`` and ``python_function``.

    Args:
        module: maps one tensor to one tensor, on the CPU.
        example: of its input, at least two items: the first dimension stays dynamic, the others are fixed.
        folder: is created.

    Raises:
        UsageError: ``torch.export`` cannot trace the module.
    """
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    module.eval()
    with torch.no_grad():
        output = module(example)
    if not isinstance(output, Tensor):
        raise UsageError(f"The predictor returns a {type(output).__name__}. Expected a module that returns one tensor.")
    schemas = (
        Schema([TensorSpec(np.dtype(str(one.dtype).removeprefix("torch.")), (-1, *one.shape[1:]))])
        for one in (example, output)
    )
    try:
        mlflow.pytorch.save_model(
            module,
            str(folder),
            input_example=example.numpy(),  # with a tensor, MLflow omits the flavor python_function
            signature=ModelSignature(*schemas),
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"mlflow=={mlflow.__version__}",
                "numpy",
            ],
            serialization_format="pt2",
        )
    except Exception as error:  # torch.export raises any error of its tracer
        raise UsageError(
            f"The predictor cannot be exported: {type(error).__name__}: {first_line(error)} Expected a module that "
            "torch.export traces: no branches on tensor values, one input tensor, one output tensor."
        ) from error
    _refuse_unlike(folder, module, example)
    description = Model.load(str(folder))
    # An exported model runs only on the device of its export; MLflow would look for CUDA.
    description.flavors["python_function"]["model_config"] = {"device": "cpu"}
    description.save(str(folder / "MLmodel"))


def _refuse_unlike(folder: Path, module: nn.Module, example: Tensor) -> None:
    """Raise an error unless an exported module matches its original.

    It must accept other batch lengths and return the same values.

    Raises:
        UsageError: it fails or differs for another batch length.
    """
    import mlflow.pytorch

    exported = mlflow.pytorch.load_model(str(folder))
    for batch in (example[:1], torch.cat([example, example[:1]])):
        try:
            with torch.no_grad():
                same = torch.allclose(exported(batch), module(batch), rtol=1e-3, atol=1e-4)
        except Exception as error:  # guards of torch.export raise many types
            raise UsageError(
                f"The exported predictor rejects a batch of {len(batch)}: {type(error).__name__}: {first_line(error)} Expected "
                "a module that accepts any length. Try: x.shape[0] in place of len(x)"
            ) from error
        if not same:
            raise UsageError(
                "The exported predictor returns other values than the project's. Expected a module whose result depends on its "
                "input alone."
            )


def log(server: TrackingClient, source: Source, name: str, folder: Path) -> str:
    """Log a written model as a LoggedModel; return its id.

    If the checkpoint has a complete LoggedModel of this name, its id is returned.

    Raises:
        TrackingError, StorageError: the server or its artifact store refuses.
    """
    known = _known(server, source, name)
    if known is not None:
        return known
    from mlflow.models import Model

    tags = {MADE_FROM_TAG: source.checkpoint}
    model = server.tried(
        server.client.create_logged_model, source.experiment_id, name=name, source_run_id=source.run_id, tags=tags
    )
    with _finalized(server, model.model_id):
        description = Model.load(str(folder))
        description.model_id, description.run_id = model.model_id, source.run_id
        description.save(str(folder / "MLmodel"))
        server.retried(server.client.log_model_artifacts, model.model_id, str(folder))
        log_metrics(server, source, model.model_id)
    return str(model.model_id)


def register(server: TrackingClient, source: Source, model_id: str, name: str, alias: str | None) -> int:
    """Register a LoggedModel and return the version's number.

    An existing version is reused.

    Args:
        server: has the registry.
        source: of the LoggedModel.
        model_id: of the LoggedModel.
        name: of the registered model, which is created if it is missing.
        alias: moved to the version. If ``None``, no alias changes.

    Raises:
        TrackingError: the registry refuses.
    """
    place = f"models:/{model_id}"
    found = list(model_versions(server, f"run_id = '{source.run_id}'"))
    number = next((int(one.version) for one in found if one.name == name and one.source == place), None)
    if number is None:
        number = _created_version(server, source, model_id, name)
    if alias is not None:
        server.retried(server.client.set_registered_model_alias, name, alias, str(number))
    return number


def _created_version(server: TrackingClient, source: Source, model_id: str, name: str) -> int:
    """Create a version, and its registered model if needed; return its number."""
    try:
        server.tried(server.client.create_registered_model, name)
    except Refusal as error:
        if getattr(error.__cause__, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise
    create, place = server.client.create_model_version, f"models:/{model_id}"
    return int(server.tried(create, name, place, run_id=source.run_id, model_id=model_id).version)


def _known(server: TrackingClient, source: Source, name: str) -> str | None:
    """Return the id of the checkpoint's complete LoggedModel, or ``None``."""
    for model in logged_models(server, source.experiment_id, source.run_id):
        made_from = model.tags.get(MADE_FROM_TAG)
        if model.name == name and made_from == source.checkpoint and str(model.status) == "READY":
            return str(model.model_id)
    return None


def log_metrics(server: TrackingClient, source: Source, model_id: str) -> None:
    """Log a checkpoint's metrics to a LoggedModel.

    The model becomes an output of the run.

    Raises:
        TrackingError: the server refuses.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    client = server.client.mlflow_client() if isinstance(server.client, DeferredClient) else server.client
    points = dict(_points(server, source))
    metrics = [Metric(key, value, when, source.step, model_id=model_id) for key, (value, when) in points.items()]
    server.retried(client.log_batch, source.run_id, metrics=metrics)
    server.retried(client.log_outputs, source.run_id, [LoggedModelOutput(model_id, source.step)])


def _points(server: TrackingClient, source: Source) -> Iterator[tuple[str, tuple[float, int]]]:
    """Yield each metric with its value and timestamp.

    The timestamp is that of the run's own point, so that MLflow does not add a second point.
    """
    for key, value in source.metrics.items():
        for point in server.history(source.run_id, key):
            if point.step == source.step and point.value == value:
                yield key, (value, point.timestamp)
                break


@contextmanager
def _finalized(server: TrackingClient, model_id: str) -> Iterator[None]:
    """Mark a LoggedModel as ready, or delete it on error."""
    try:
        yield
    except BaseException:
        with suppress(MltrainError):
            delete_logged_model(server, model_id)
        raise
    server.retried(server.client.finalize_logged_model, model_id, "READY")
