"""MLflow models made from checkpoints: written with ``torch.export``, logged, registered.

They are for other programs and hold no pickle: ``mltrain`` itself never reads one.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mltrain.errors import MltrainError, UsageError
from mltrain.tracking.client import TrackingClient, first_line
from mltrain.tracking.tags import MADE_FROM_TAG

_REFUSED = re.compile(r"[/:.%\"'\x00-\x1f]")
"""What MLflow accepts in no name of a model."""
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True)
class Source:
    """The checkpoint that a model is made from.

    Attributes:
        run_id: of its run.
        experiment_id: of its run.
        checkpoint: its name.
        step: optimizer steps done.
        metrics: what was measured at it, by the names that the run has for it.
    """

    run_id: str
    experiment_id: str
    checkpoint: str
    step: int
    metrics: Mapping[str, float]


def model_name(project: str) -> str:
    """Return the name of a project's LoggedModels: its own, without what MLflow refuses."""
    return _REFUSED.sub("_", project) or "model"


def refuse_name(name: str, alias: str | None) -> None:
    """Refuse what MLflow does not accept as a name of a registered model, or as an alias.

    Raises:
        UsageError: it is not accepted.
    """
    if not name.strip() or _REFUSED.search(name):
        raise UsageError(f"--register {name!r:.80} is no name of a model. Expected one without / : . % and quotes.")
    number = alias is not None and re.fullmatch(r"v?\d+", alias, re.IGNORECASE)
    if alias is not None and (not _ALIAS.fullmatch(alias) or number or alias.lower() == "latest"):
        raise UsageError(
            f"--alias {alias!r:.80} is no alias. Expected letters, digits, - and _, and neither latest nor a version such as v1."
        )


def write(module: nn.Module, example: Tensor, folder: Path) -> None:
    """Write an MLflow model of the flavors ``pytorch`` and ``python_function``, in the format of ``torch.export``.

    Args:
        module: from one tensor to one tensor, on the CPU.
        example: of its input, two items or more: the first dimension is left open, the others are fixed.
        folder: is made.

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
            input_example=example.numpy(),  # a tensor would leave the flavor python_function out
            signature=ModelSignature(*schemas),
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"mlflow=={mlflow.__version__}",
                "numpy",
            ],
            serialization_format="pt2",
        )
    except Exception as error:  # torch.export raises what its tracer meets
        raise UsageError(
            f"The predictor cannot be exported: {type(error).__name__}: {first_line(error)} Expected a module that "
            "torch.export traces: no branches on values of tensors, one tensor in, one out."
        ) from error
    _refuse_unlike(folder, module, example)
    description = Model.load(str(folder))
    # An exported model stays on the device that it was exported on; MLflow would look for CUDA.
    description.flavors["python_function"]["model_config"] = {"device": "cpu"}
    description.save(str(folder / "MLmodel"))


def _refuse_unlike(folder: Path, module: nn.Module, example: Tensor) -> None:
    """Refuse an exported module that takes batches of the example's length only, or computes something else.

    Raises:
        UsageError: it is such a one.
    """
    import mlflow.pytorch

    exported = mlflow.pytorch.load_model(str(folder))
    for batch in (example[:1], torch.cat([example, example[:1]])):
        try:
            with torch.no_grad():
                same = torch.allclose(exported(batch), module(batch), rtol=1e-3, atol=1e-4)
        except Exception as error:  # whatever the guards of torch.export raise
            raise UsageError(
                f"The exported predictor takes no batch of {len(batch)}: {type(error).__name__}: {first_line(error)} Expected "
                "a module that takes any. Try: x.shape[0] in place of len(x)"
            ) from error
        if not same:
            raise UsageError(
                "The exported predictor computes other values than the project's. Expected a module whose result follows from "
                "its input alone."
            )


def log(server: TrackingClient, source: Source, name: str, folder: Path) -> str:
    """Make a LoggedModel of what :func:`write` wrote, and return its id; of a checkpoint that has one, that one's.

    Raises:
        TrackingError, StorageError: the server or its artifact store does not take it.
    """
    known = _known(server, source, name)
    if known is not None:
        return known
    from mlflow.models import Model

    tags = {MADE_FROM_TAG: source.checkpoint}
    model = server.create_logged_model(source.experiment_id, name, source.run_id, tags)
    with _finalized(server, model.model_id):
        description = Model.load(str(folder))
        description.model_id, description.run_id = model.model_id, source.run_id
        description.save(str(folder / "MLmodel"))
        server.log_model_artifacts(model.model_id, str(folder))
        server.log_model_metrics(source.run_id, model.model_id, source.step, dict(_points(server, source)))
    return str(model.model_id)


def register(server: TrackingClient, source: Source, model_id: str, name: str, alias: str | None) -> int:
    """Make a version of a registered model from a LoggedModel, and return its number; one that exists is taken.

    Args:
        server: has the registry.
        source: of the LoggedModel.
        model_id: of the LoggedModel.
        name: of the registered model, which is created where it is missing.
        alias: moved to the version, if given.

    Raises:
        TrackingError: the registry refuses.
    """
    place = f"models:/{model_id}"
    found = list(server.search_model_versions(f"run_id = '{source.run_id}'"))
    number = next((int(one.version) for one in found if one.name == name and one.source == place), None)
    if number is None:
        number = server.create_model_version(name, place, source.run_id, model_id)
    if alias is not None:
        server.set_alias(name, alias, number)
    return number


def _known(server: TrackingClient, source: Source, name: str) -> str | None:
    """Return the id of the LoggedModel of this name that was made from the checkpoint before and is complete."""
    for model in server.search_logged_models(source.experiment_id, f"source_run_id = '{source.run_id}'"):
        made_from = model.tags.get(MADE_FROM_TAG)
        if model.name == name and made_from == source.checkpoint and str(model.status) == "READY":
            return str(model.model_id)
    return None


def _points(server: TrackingClient, source: Source) -> Iterator[tuple[str, tuple[float, int]]]:
    """Yield each metric with its value and the timestamp of the run's own point, which it then equals: no second one appears."""
    for key, value in source.metrics.items():
        for point in server.history(source.run_id, key):
            if point.step == source.step and point.value == value:
                yield key, (value, point.timestamp)
                break


@contextmanager
def _finalized(server: TrackingClient, model_id: str) -> Iterator[None]:
    """Call a LoggedModel ready at the end; delete it after an error."""
    try:
        yield
    except BaseException:
        with suppress(MltrainError):
            server.once.delete_logged_model(model_id)
        raise
    server.finalize_logged_model(model_id)
