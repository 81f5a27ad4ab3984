"""What a Trainer of Lightning's takes besides callbacks: a logger, a way to checkpoints; and what is refused in it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Training
from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.tracking.client import active_run_id

_WHOLE = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies, and what is derived from them, whose checkpoint of one process is the whole state."""


class OfLightning:
    """A class whose instances belong to a class of Lightning's, in each of its packages that is imported."""

    _base: str
    """``Checkpoint``, ``Logger`` or ``CheckpointIO``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Return an instance of the class and of those of Lightning's."""
        missing = tuple(base for base in _classes(cls._base) if not issubclass(cls, base))
        kind: Any = type(cls.__name__, (cls, *missing), {"__qualname__": cls.__qualname__}) if missing else cls
        made: Self = object.__new__(kind)
        return made


class Curves(OfLightning):
    """A logger that records in the run of a training, each point once.

    What Lightning logs at its step s is recorded at s + 1, the number of optimizer steps done: so the points of a step have the
    number that its checkpoint has. Points that the user logs at steps of another kind stay where they are.
    """

    _base = "Logger"
    name = "mltrain"
    version: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, str] = {}
        self._trainer: Any = None
        self._training: Training | None = None
        self._waiting: list[tuple[Mapping[str, float], int]] = []
        self._newest: tuple[int, dict[str, float]] = (-1, {})

    def begin(self, trainer: Any) -> None:
        """Hold what is logged until there is a run."""
        self._trainer, self._training = trainer, None
        self.parameters, self._waiting = {}, []

    def attach(self, training: Training) -> None:
        """Record in the run of a training from now on."""
        self._training, self.version = training, training.place
        for values, step in self.taken():
            training.log(values, step)

    def detach(self) -> None:
        """Record nothing more: the run is being closed."""
        self._training = None

    def taken(self) -> list[tuple[Mapping[str, float], int]]:
        """Return what was logged without a run, and forget it."""
        waiting, self._waiting = self._waiting, []
        return waiting

    @property
    def experiment(self) -> Any:
        """The run, while there is one."""
        return self._training.run if self._training is not None else None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics of a step."""
        values, now = floats(metrics, "the logger"), self._trainer.fit_loop.epoch_loop._batches_that_stepped
        under_way = self._trainer.state.fn == "fit"  # Lightning counts a step, and an epoch, once it has been logged
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
            self._waiting.append((values, at))

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Hold hyper-parameters for the run, nested ones under names with slashes."""
        given = params if isinstance(params, Mapping) else vars(params) if params is not None else {}
        self.parameters |= dict(_flat(given))


class Door(OfLightning):
    """Loads addresses of mltrain, and leaves all other paths to the ``CheckpointIO`` that the Trainer has.

    Args:
        inner: the Trainer's.
        load: returns the checkpoint of an address.
    """

    _base = "CheckpointIO"

    def __init__(self, inner: Any, load: Callable[[Address], dict[str, Any]]) -> None:
        super().__init__()
        self._inner = inner
        self._load = load

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint."""
        address = Address.parse(path)
        return self._load(address) if address is not None else self._inner.load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Save a file of the user's or of another callback.

        Raises:
            UsageError: the path is an address of mltrain.
        """
        if Address.parse(path) is not None:
            raise UsageError(
                f"{path} cannot be saved to by hand. Expected a file. Try: MltrainCheckpoint(every_n_train_steps=N), which saves."
            )
        self._inner.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Let go of what the Trainer's holds."""
        self._inner.teardown()


def _classes(base: str) -> list[Any]:
    """Return a class of Lightning's from each imported package, or from the first that is installed.

    Raises:
        UsageError: none is.
    """
    found: list[Any] = []
    imported = [package for package in _PACKAGES if package in sys.modules]
    for package, classes in _PACKAGES.items():
        if package in imported or not (imported or found):
            found += classes(base)
    if not found:
        raise UsageError("Neither lightning nor pytorch-lightning is installed. Try: pip install 'mltrain[lightning]'")
    return found


def _of_lightning(base: str) -> list[Any]:
    try:
        from lightning.fabric.plugins import CheckpointIO
        from lightning.pytorch.callbacks import Checkpoint
        from lightning.pytorch.loggers import Logger
    except ImportError:
        return []
    return [{"Checkpoint": Checkpoint, "Logger": Logger, "CheckpointIO": CheckpointIO}[base]]


def _of_pytorch_lightning(base: str) -> list[Any]:
    try:
        from lightning_fabric.plugins import CheckpointIO
        from pytorch_lightning.callbacks import Checkpoint
        from pytorch_lightning.loggers import Logger
    except ImportError:
        return []
    return [{"Checkpoint": Checkpoint, "Logger": Logger, "CheckpointIO": CheckpointIO}[base]]


def _flat(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and texts of nested parameters."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", str(value)


_PACKAGES: Mapping[str, Callable[[str], list[Any]]] = {
    "lightning.pytorch": _of_lightning,
    "pytorch_lightning": _of_pytorch_lightning,
}


def refuse_sharding(strategy: Any) -> None:
    """Refuse a strategy whose checkpoint of one process is not the whole state.

    Raises:
        UsageError: it is one.
    """
    kind = type(strategy)
    if not _WHOLE & {base.__name__ for base in kind.__mro__}:
        raise UsageError(
            f"{kind.__name__} keeps a part of the state in each process, and MltrainCheckpoint saves whole states. "
            "Expected a single device. Try: Trainer(devices=1, strategy='auto')."
        )


def refuse_second_logger(trainer: Any, origin: Origin | None) -> None:
    """Refuse an ``MLFlowLogger`` of the run that the training is about to write to.

    Raises:
        UsageError: there is one.
    """
    run_id = origin.address.place if origin is not None else active_run_id()
    for logger in trainer.loggers:
        if type(logger).__name__ == "MLFlowLogger" and run_id is not None and logger.run_id == run_id:
            raise UsageError(
                f"MLFlowLogger writes to run {run_id}, and MltrainCheckpoint records the same curves there: each point would "
                "come twice. Expected one of them. Try: without MLFlowLogger."
            )
