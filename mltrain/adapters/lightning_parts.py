"""Logger, ``CheckpointIO`` and checks for Lightning's Trainer."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Training
from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.tracking.client import active_run_id

_UNSHARDED = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies (and bases of strategies) with the whole state in one process."""
_FABRICS = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
"""The packages of Lightning, each with its own Fabric."""
_HOMES = {"Checkpoint": "{0}.callbacks", "Logger": "{0}.loggers", "CheckpointIO": "{1}.plugins"}
"""For each base class its module: in the package, or in its Fabric."""


class LightningMixin:
    """Base of classes whose instances also subclass one of Lightning's.

    Lightning has two packages with the same classes. An instance subclasses that of each imported package.
    """

    _base: str
    """``Checkpoint``, ``Logger`` or ``CheckpointIO``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create an instance of a subclass with Lightning's bases."""
        missing = tuple(base for base in _base_classes(cls._base) if not issubclass(cls, base))
        kind: Any = type(cls.__name__, (cls, *missing), {"__qualname__": cls.__qualname__}) if missing else cls
        made: Self = object.__new__(kind)
        return made


class RunLogger(LightningMixin):
    """A Lightning logger that records each point once.

    A point that Lightning logs at its step s is recorded at s + 1, the number of optimizer steps done and the number of the
    checkpoint of that step. Points that the user logs at other steps keep their steps.
    """

    _base = "Logger"
    name = "mltrain"
    version: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, str] = {}
        self._trainer: Any = None
        self._training: Training | None = None
        self._unrecorded: list[tuple[Mapping[str, float], int]] = []
        self._newest: tuple[int, dict[str, float]] = (-1, {})

    def begin(self, trainer: Any) -> None:
        """Buffer points until :meth:`attach`."""
        self._trainer, self._training = trainer, None
        self.parameters, self._unrecorded = {}, []

    def attach(self, training: Training) -> None:
        """Record the buffered points, and stop buffering."""
        self._training, self.version = training, training.location
        for values, step in self.take_unrecorded():
            training.log(values, step)

    def detach(self) -> None:
        """Buffer points again, because the run is being closed."""
        self._training = None

    def take_unrecorded(self) -> list[tuple[Mapping[str, float], int]]:
        """Return the buffered points, and empty the buffer."""
        waiting, self._unrecorded = self._unrecorded, []
        return waiting

    @property
    def experiment(self) -> Any:
        """The run. ``None`` outside of a training, or if it saves to a folder."""
        return self._training.run if self._training is not None else None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics of a step.

        Args:
            metrics: name to number, or to a tensor with one element.
            step: Lightning's step. If ``None``, the current one.

        Raises:
            UsageError: a value is not one real number.
        """
        values, now = floats(metrics, "the logger"), self._trainer.fit_loop.epoch_loop._batches_that_stepped
        under_way = self._trainer.state.fn == "fit"  # Lightning counts a step or an epoch only after logging it
        at = now + under_way if step is None or step == now else step
        if values.get("epoch") == self._trainer.current_epoch:
            values["epoch"] += under_way
        if at != self._newest[0]:
            self._newest = at, {}
        values = {key: value for key, value in values.items() if self._newest[1].get(key) != value}
        self._newest[1].update(values)  # Lightning logs the epoch with each group of metrics of a step
        if self._training is not None:
            self._training.log(values, at)
        else:
            self._unrecorded.append((values, at))

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Buffer hyper-parameters for the run; nested names are joined by slashes."""
        given = params if isinstance(params, Mapping) else vars(params) if params is not None else {}
        self.parameters |= dict(_flattened(given))


class AddressIO(LightningMixin):
    """Loads mltrain's addresses; passes all other paths to another ``CheckpointIO``.

    Args:
        inner: the Trainer's own ``CheckpointIO``.
        load: returns the checkpoint at an address, in Lightning's layout.
    """

    _base = "CheckpointIO"

    def __init__(self, inner: Any, load: Callable[[Address], dict[str, Any]]) -> None:
        super().__init__()
        self._inner = inner
        self._load = load

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint from an address or a path.

        Raises:
            NoCheckpoint, RunNotFound, TrackingError, UsageError: as :meth:`Origin.read` and :meth:`Address.parse` raise them.
        """
        address = Address.parse(path)
        return self._load(address) if address is not None else self._inner.load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Save a file for the user or another callback.

        Raises:
            UsageError: the path is an address of mltrain, which only ``MltrainCheckpoint`` saves to.
        """
        if Address.parse(path) is not None:
            raise UsageError(
                f"save_checkpoint() cannot write to {path}. Expected a file path. Try: MltrainCheckpoint(every_n_train_steps=N)"
            )
        self._inner.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Tear down the Trainer's own ``CheckpointIO``."""
        self._inner.teardown()


def _base_classes(base: str) -> list[Any]:
    """Return a Lightning class from each imported package.

    If no package is imported, the class comes from the first one that is installed.

    Args:
        base: ``Checkpoint``, ``Logger`` or ``CheckpointIO``.

    Raises:
        UsageError: neither package is installed.
    """
    found: list[Any] = []
    imported = [package for package in _FABRICS if package in sys.modules]
    for package, fabric in _FABRICS.items():
        if package in imported or not (imported or found):
            with suppress(ImportError):
                found.append(getattr(importlib.import_module(_HOMES[base].format(package, fabric)), base))
    if not found:
        raise UsageError(
            "Neither lightning nor pytorch-lightning is installed. Expected one of them. Try: pip install 'mltrain[lightning]'"
        )
    return found


def _flattened(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested parameters as text, under names joined by slashes."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", str(value)


def refuse_sharding(strategy: Any) -> None:
    """Refuse a strategy that spreads the state over processes.

    Raises:
        UsageError: the strategy is sharded, or unknown.
    """
    kind = type(strategy)
    if not _UNSHARDED & {base.__name__ for base in kind.__mro__}:
        raise UsageError(
            f"{kind.__name__} keeps a part of the state in each process, and MltrainCheckpoint saves whole states. "
            "Expected a single device. Try: Trainer(devices=1, strategy='auto')"
        )


def refuse_second_logger(trainer: Any, origin: Origin | None) -> None:
    """Refuse an ``MLFlowLogger`` that writes to the training's run.

    Args:
        trainer: Lightning's Trainer.
        origin: the checkpoint that the training continues. If ``None``, the training begins in the active MLflow run, if any.

    Raises:
        UsageError: one of the Trainer's loggers is an ``MLFlowLogger`` of that run.
    """
    run_id = origin.address.location if origin is not None else active_run_id()
    for logger in trainer.loggers:
        if type(logger).__name__ == "MLFlowLogger" and run_id is not None and logger.run_id == run_id:
            raise UsageError(
                f"MLFlowLogger and MltrainCheckpoint record the same curves in run {run_id}: each point would come twice. "
                "Expected one of them. Try: Trainer(callbacks=[MltrainCheckpoint()]) without MLFlowLogger"
            )
