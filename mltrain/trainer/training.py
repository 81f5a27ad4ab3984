"""The state of a training: parts of the task and the trainer."""

import copy
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch

from mltrain import device as devices
from mltrain.checkpoint.late_copy import LateCopy
from mltrain.checkpoint.pytree import flatten
from mltrain.config import Config
from mltrain.history import History
from mltrain.restoring.built import Built
from mltrain.restoring.changes import Changes
from mltrain.rng import Rng
from mltrain.schedules import counts_steps, is_schedule, put_settings
from mltrain.state import Progress, Stateful, TrainState
from mltrain.steps import AllowsLateCopy
from mltrain.stopping import BestSoFar, EarlyStopping
from mltrain.task import Task, check_schedule, prepare_step

_COUNTERS = ("ended", "skipped", "skipped_in_a_row", "rollbacks")


class Means:
    """Running means over the current epoch, part of every checkpoint.

    Attributes:
        ended: whether all batches of the epoch are done, and only its evaluation is missing.
        steps, skipped: numbers of steps of the epoch that trained, and that were not finite.
        skipped_in_a_row: number of steps that were not finite since the last that trained.
        rollbacks: number of rollbacks since then.
        trained: whether any step of the training has trained.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.ended = False
        self.steps = self.skipped = self.skipped_in_a_row = self.rollbacks = 0
        self.trained = False

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.steps += 1
        self.skipped_in_a_row = 0
        self.trained = True

    def skip(self) -> None:
        """Count a step that was not finite, without its values."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def pop(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts, self.ended = {}, {}, False
        self.steps = self.skipped = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return sums, counts, and counters other than zero."""
        counters = {name: getattr(self, name) for name in _COUNTERS if getattr(self, name)}
        unusual = {**counters, **({} if self.trained or not self.skipped_in_a_row else {"trained": False})}
        return {"sums": dict(self._sums), "counts": dict(self._counts), "steps": self.steps, **unusual}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore sums, counts and counters."""
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
        for name in _COUNTERS:
            setattr(self, name, state_dict.get(name, 0))
        self.steps = state_dict.get("steps", max(self._counts.values(), default=0))
        self.trained = state_dict.get("trained", True)
        self.ended = bool(self.ended)


log = logging.getLogger(__name__)

_OWN_PARTS = frozenset({"history", "best", "stopping", "means", "loss_module"})
"""Parts that may be missing in a checkpoint: a warning is logged, and they start new."""


class Training:
    """A task on its device, with the trainer's own state.

    Args:
        task: to train.
        config: device, precision, metrics and more.

    Attributes:
        device: of the step.
        progress: steps, epochs, and batches of the current epoch.
        history: the table of epochs.
        best: the best value of ``best_metric`` so far.
        stopping: early stopping.
        means: running means over the current epoch.
        state: the parts of the task, those above, the loader and the random number generators.
        late: copies parameters and optimizer state during the next step, if the task's step allows it.

    Raises:
        UsageError: a schedule follows a metric that nothing measures, or two parts have the same name.
        ConfigError: this machine does not have the device, or ``device`` or ``amp`` has no effect on the step.
    """

    def __init__(self, task: Task, config: Config) -> None:
        check_schedule(task, config)
        self.task, self.config = task, config
        self.device = devices.chosen(config.device)
        devices.make_current(self.device)
        prepare_step(task, config, self.device)
        self.progress = Progress()
        self.history = History()
        self.best = BestSoFar(config.best_metric, config.best_mode)
        metric, mode = (
            config.early_stopping_metric or config.best_metric,
            config.early_stopping_mode or config.best_mode,
        )
        self.stopping = EarlyStopping(metric, mode, config.early_stopping_patience, config.early_stopping_min_delta)
        self.means = Means()
        self._parts = task.parts()
        devices.warn_of_unsaved_dropout(self._parts, self.device)
        self._built = Built(self._parts)
        self.state = TrainState(dict(self._parts))
        own: dict[str, Stateful] = {
            "loader": task.loader,
            "progress": self.progress,
            "history": self.history,
            "best": self.best,
            "stopping": self.stopping,
            "means": self.means,
            "rng": Rng(),
        }
        for name, part in own.items():
            self.state.add(name, part)
        allowed = isinstance(task.step, AllowsLateCopy) and task.step.late_copy
        optimizers = [part for part in self._parts.values() if isinstance(part, torch.optim.Optimizer)]
        self.late = LateCopy(optimizers if allowed else ())
        self._lacking: dict[str, Any] = {}  # initial states of parts that the restored checkpoint lacks

    @property
    def parts(self) -> Collection[Stateful]:
        """The parts of the task."""
        return self._parts.values()

    @property
    def done(self) -> bool:
        """Whether all epochs are done or early stopping has ended."""
        return self.progress.epoch >= self.config.epochs or self.stopping.exhausted

    def check_savable(self) -> None:
        """Check that a checkpoint can hold every part.

        Raises:
            UnsupportedValue: a part holds a value of a type that no checkpoint can hold.
        """
        for name, part in self._parts.items():
            if not isinstance(part, torch.nn.Module):
                with suppress(ValueError):  # a lazy module has no tensors yet
                    flatten({name: part.state_dict()}, sharded=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parts, with their constructor settings."""
        state = self.state.state_dict()
        state["progress"]["built"] = self._built.record  # earlier releases ignore it
        return state

    def restore(
        self, parts: Mapping[str, Any], *, imported: bool, changed: Mapping[str, tuple[str, str]] | None
    ) -> None:
        """Restore all parts from a checkpoint; see :meth:`mltrain.Trainer.restore`."""
        optional = self.state.parts.keys() - {"model"} if imported else _OWN_PARTS | self._scalers()
        self.late.finish()
        changes = Changes(self._built, self._without_scalers(parts), changed or {})
        sources = self.state.restore(changes.parts, optional=optional, ignore_unknown=imported)
        changes.apply(sources)
        lacking = self._parts.keys() - parts.keys() if self.config.on_nonfinite == "rollback" else ()
        state = self.state.state_dict() if lacking else {}
        self._lacking = copy.deepcopy({name: state[name] for name in lacking})

    def _scalers(self) -> set[str]:
        return {name for name, part in self._parts.items() if isinstance(part, torch.amp.GradScaler)}

    def _without_scalers(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a checkpoint's parts without an unused gradient scaler.

        The precision determines whether the scaler is used.
        """
        unused = [name for name in parts.keys() - self.state.parts.keys() if _is_of_scaler(parts[name])]
        if unused:
            log.warning("The gradient scaler of the checkpoint is not used: amp=%s needs none.", self.config.amp)
        return {name: state for name, state in parts.items() if name not in unused}

    def roll_back(self, parts: Mapping[str, Any]) -> None:
        """Restore models and optimizers only.

        The position in the data, counters and schedules continue. So the batches that led here are skipped (as in PaLM,
        Chowdhery et al. 2022, section 5.1), steps are counted once, and every metric keeps one value per step.
        """
        self.late.finish()
        # A schedule that follows a metric is rolled back with the rates that it set; any other continues with the counters.
        trained = {name: part for name, part in self._parts.items() if not (is_schedule(part) and counts_steps(part))}
        settings = self._built.settings()
        parts = {**self._lacking, **parts}
        changes = Changes(self._built, parts, {})  # the checkpoint may be older than a change of the configuration
        changes.apply(TrainState(trained).restore({name: changes.parts[name] for name in trained}))
        put_settings(settings)


def _is_of_scaler(state: Any) -> bool:
    return isinstance(state, Mapping) and {"scale", "growth_factor", "backoff_factor"} <= state.keys()
