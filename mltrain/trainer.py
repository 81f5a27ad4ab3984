"""The training loop. It reads from top to bottom and has no hooks: what a callback would do is code in the loop's body.

>>> for progress in trainer.steps():
...     print(progress.step, trainer.measured)
"""

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.parameter import is_lazy

from mltrain import device as devices
from mltrain.checkpoint.late_copy import LateCopy
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.pytree import flatten
from mltrain.checkpoint.retention import metrics_of, parse
from mltrain.config import Config
from mltrain.data import Loader, mixed
from mltrain.errors import MltrainError, NonFiniteLoss, RunHeld, UsageError, nearest
from mltrain.history import History
from mltrain.rng import Rng, own_rng
from mltrain.schedules import Built, counts_steps, is_schedule, put_settings
from mltrain.state import Progress, Stateful, TrainState
from mltrain.steps import AllowsLateCopy, FollowsMetric, HasDevice, HasEpochMetrics, HasParts, Metrics, Step, floats
from mltrain.stopping import EarlyStopping, improves
from mltrain.triggers import Every, Moment

log = logging.getLogger(__name__)

_ROLLBACKS = 3
"""How often in a row a training goes back to one and the same checkpoint before it gives up."""

_CONSEQUENCES = {
    "best_metric": ", so no checkpoint is the best one. Try: mltrain train --resume-run with a best_metric that is measured.",
    "early_stopping_metric": ", so early stopping could not end the training.",
    "retention": ", by which the policy was to choose checkpoints.",
}
_WATCHED = ("loss", "grad_norm")
_COUNTERS = ("ended", "skipped", "skipped_in_a_row", "rollbacks")

_OWN_PARTS = frozenset({"history", "best", "stopping", "means", "loss_module"})
"""Parts that a checkpoint may lack: training goes on without them, and that is said."""


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how it is judged.

    Attributes:
        step: trains on one batch and returns metrics.
        loader: gives the batches and knows where it is.
        evaluate: measures on held-out data and returns floats such as ``val/loss``. When it raises, the end of the epoch is
            saved as it was before, the training ends with that error, and a resume evaluates again.
        images: makes pictures of fixed held-out samples, by name: PIL images, figures, files, arrays or tensors (see
            :func:`mltrain.delivery.images.as_image`). Called when the epoch is saved; an error is logged as a warning.
        report: evaluates thoroughly, writes tables and pictures into a folder, and returns floats.
        state: further parts that belong to every checkpoint, by name.
    """

    step: Step
    loader: Loader
    evaluate: Callable[[], Mapping[str, float]] | None = None
    images: Callable[[], Mapping[str, Any]] | None = None
    report: Callable[[Path], Mapping[str, float]] | None = None
    state: Mapping[str, Stateful] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("step", "evaluate", "images", "report"):
            part = getattr(self, name)
            if not callable(part) and (name == "step" or part is not None):
                raise UsageError(f"{name}={part!r:.80} of the task cannot be called. Expected a function.")
        if not isinstance(self.state, Mapping) or not all(isinstance(name, str) for name in self.state):
            raise UsageError(
                f"state={self.state!r:.80} of the task is invalid. Expected a mapping from names to parts."
            )
        if not isinstance(self.loader, Loader):
            raise UsageError(
                f"A {type(self.loader).__name__} cannot say where it is, so a training could not be resumed within an "
                "epoch: a loader with state_dict() and load_state_dict() was expected. Take "
                "mltrain.ResumableLoader(dataset, batch_size), mltrain.StreamLoader for an iterable dataset, or the "
                "StatefulDataLoader of torchdata."
            )


class Tracker(Protocol):
    """Where a trainer records what it measures."""

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        ...

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Record points of one step, without waiting."""
        ...

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Record pictures of one step, without waiting."""
        ...

    def log_epoch(self, history: History) -> None:
        """Record the table of epochs, without waiting."""
        ...


class Saver(Protocol):
    """Where a trainer saves its state; :class:`mltrain.CheckpointManager` is one."""

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        kind: Kind,
        extra: Mapping[str, bytes],
        data: Mapping[str, str],
        late: LateCopy | None,
    ) -> Any:
        """Save a state, without waiting for a network."""
        ...


@runtime_checkable
class HasPeek(Protocol):
    """A saver that can show what it saved; going back after a loss that is not finite needs it."""

    def peek(self) -> Mapping[str, Any] | None:
        """Return the parts of the newest checkpoint, verified, and change nothing; none: there is none."""
        ...


@runtime_checkable
class HasFailure(Protocol):
    """A saver that says why it could not keep the newest state: because that is not finite, for example."""

    @property
    def failure(self) -> MltrainError | None:
        """Why the newest state was not kept, or None."""
        ...


class Stop(Protocol):
    """Whether somebody asked to stop; :class:`mltrain.signals.StopRequest` is one."""

    checkpoint_wanted: bool

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        ...


class Trainer:
    """Trains a task: steps, evaluation, one save decision a step.

    Args:
        task: what to train.
        config: how long, how often.
        tracker: where to record.
        saver: where to save.
        stop: asked after every step.
        data: fingerprint of the data, which becomes part of every checkpoint.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        tracker: Tracker,
        saver: Saver,
        stop: Stop,
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.task = task
        self.config = config
        self._tracker = tracker
        self._saver = saver
        self._stop = stop
        self._data = dict(data or {})
        check_schedule(task, config)
        self.device = devices.chosen(config.device)
        devices.make_current(self.device)
        if isinstance(task.step, HasDevice):
            task.step.prepare(self.device, config.amp)
        self.progress = Progress()
        self.history = History()
        self.best = Best(config.best_metric, config.best_mode)
        metric, mode = (
            config.early_stopping_metric or config.best_metric,
            config.early_stopping_mode or config.best_mode,
        )
        self.stopping = EarlyStopping(metric, mode, config.early_stopping_patience, config.early_stopping_min_delta)
        self.means = Means()
        self.measured: dict[str, float] = {}
        """What was measured at the present step."""
        self.state = TrainState()
        step_parts = task.step.parts() if isinstance(task.step, HasParts) else {}
        self._built = Built({**step_parts, **task.state})
        own: dict[str, Stateful] = {
            "loader": task.loader,
            "progress": self.progress,
            "history": self.history,
            "best": self.best,
            "stopping": self.stopping,
            "means": self.means,
            "rng": Rng(),
        }
        for parts in (step_parts, task.state, own):  # one after the other, so that no name hides another part
            for name, part in parts.items():
                self.state.add(name, part)
        allowed = isinstance(task.step, AllowsLateCopy) and task.step.late_copy
        optimizers = [part for part in self.state.parts.values() if isinstance(part, torch.optim.Optimizer)]
        self._late = LateCopy(optimizers if allowed else ())
        self._due = Every(epochs=config.save_interval, steps=config.save_every_steps, minutes=config.save_every_minutes)
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._failing: HasFailure | None = None
        self._refused: MltrainError | None = None
        self._wanted = _wanted(task, config)
        self._missed: set[str] = set()
        self._resumed_rng: Mapping[str, Any] | None = None
        self._epoch_began = time.monotonic()

    def attach(self, tracker: Tracker, saver: Saver) -> None:
        """Record and save from now on with these."""
        self._tracker, self._saver = tracker, saver

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train: all epochs are done, or early stopping's patience is used up."""
        return self.progress.epoch >= self.config.epochs or self.stopping.exhausted

    def steps(self) -> Iterator[Progress]:
        """Train, and yield after every optimizer step, when evaluation and the save decision of that step are made.

        Raises:
            NonFiniteLoss: the loss, its gradient or the weights became NaN or infinite, and the configuration says to abort
                or nothing else helps.
            RunHeld: another process has taken the run over.
        """
        try:
            yield from self._steps()
        finally:
            self._late.finish()  # whoever goes on may change what was trained

    def _steps(self) -> Iterator[Progress]:
        fruitless = -1
        self._failing = self._saver if isinstance(self._saver, HasFailure) else None
        self._flatten_parts()
        if self.done:
            self._refuse_untrained()
        if self.means.ended and not (self.done or self._stop.requested):  # saved when the evaluation of an epoch failed
            self._end_epoch()
        while not (self.done or self._stop.requested):
            ended = False
            for batch in self._batches():
                metrics = self.task.step(batch)
                self.progress.step += 1
                self.progress.batch += 1
                ended = self.progress.batch == self.batches
                self.measured = {}
                self._take(metrics)
                if ended:
                    self._end_epoch()
                else:
                    self._save_if_due(epoch_ended=False)
                yield self.progress
                if self._stop.requested:
                    return
            if not ended and self.progress.batch:  # a loader without a length says only now that the epoch is over
                self._end_epoch()
            elif not ended and fruitless == self.progress.step:
                raise UsageError("The loader gave no batch in a whole epoch: there is nothing to train on.")
            elif not ended:  # a loader that was put back at the very end of an epoch gives nothing before the next one
                fruitless = self.progress.step
                self._draw_again()
        if self.done:
            self._refuse_untrained()
            for name in sorted(self._missed):
                log.warning(
                    "No evaluation measured %s=%s%s", self._wanted[name], name, _CONSEQUENCES[self._wanted[name]]
                )

    def _flatten_parts(self) -> None:
        """Refuse what no checkpoint can hold before the first step, and not when the first epoch is to be saved."""
        step_parts = self.task.step.parts() if isinstance(self.task.step, HasParts) else {}
        for name, part in {**step_parts, **self.task.state}.items():
            if not isinstance(part, torch.nn.Module):
                with suppress(ValueError):  # of a lazy module, which has no tensors yet
                    flatten({name: part.state_dict()})

    def save(self, kind: Kind) -> None:
        """Save the present state."""
        self._save(kind, None)

    def _save(self, kind: Kind, late: LateCopy | None) -> None:
        if not self.means.skipped_in_a_row:
            self.means.rollbacks = 0
        state = self.state.state_dict()
        state["progress"]["built"] = self._built.record  # of this part every release reads its counters only
        self._saver.save(
            state,
            step=self.progress.step,
            epoch=self.progress.epoch,
            metrics=self.measured,
            kind=kind,
            extra={
                "params.json": json.dumps(self.config.resolved(), indent=1).encode(),
                "history.csv": self.history.to_csv(),
            },
            data=self._data,
            late=late,
        )
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step
        self._resumed_rng = None

    def restore(
        self,
        parts: Mapping[str, Any],
        *,
        imported: bool = False,
        changed: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Continue from the parts of a checkpoint; one that was ``imported`` may lack any but the model.

        Hyper-parameters of optimizers, schedules and other parts that were built with other values than those of the
        training that wrote the checkpoint take effect; all others go on as the checkpoint has them.

        Args:
            parts: name to state.
            imported: whether the checkpoint was imported.
            changed: keys of the configuration that changed since the checkpoint, each with (before, now).

        Raises:
            StateMismatch: they do not fit this task.
        """
        optional = self.state.parts.keys() - {"model"} if imported else _OWN_PARTS
        self._late.finish()
        changes = self._built.before(parts, changed or {})
        sources = self.state.restore(changes.parts, optional=optional, ignore_unknown=imported)
        changes.apply(sources)
        self._saved_step, self._resumed_rng = self.progress.step, parts.get("rng")

    @property
    def batches(self) -> int | None:
        """How many batches an epoch has; none where the loader cannot say."""
        try:
            return len(self.task.loader)  # type: ignore[arg-type] # a loader need not have a length
        except TypeError:
            return None

    @property
    def unsaved(self) -> bool:
        """Whether steps were done since the last save or restore."""
        return self._saved_step != self.progress.step

    def evaluate(self) -> dict[str, float]:
        """Evaluate under random numbers of its own, so that it changes nothing in the training.

        Raises:
            UsageError: something that was measured is not a number, or has no name.
        """
        return self._evaluated(self.progress.epoch)

    def show(self) -> None:
        """Make the pictures of the epoch that has just ended, and hand them to the tracker.

        An exact resume calls this as well, because the process may have been killed between the checkpoint and its pictures.
        """
        if self.task.images is None or self.progress.batch or not self._is_evaluated(self.progress.epoch):
            return
        self._late.finish()  # pictures may swap weights, too
        try:
            with torch.no_grad(), own_rng(mixed(self.config.seed, self.progress.epoch) & 0xFFFFFFFF):
                self._tracker.log_pictures(self.task.images(), self.progress.step, self.progress.epoch)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.warning(
                "The pictures of epoch %d are missing: %s: %s (%s, line %s). The training goes on.",
                self.progress.epoch,
                type(error).__name__,
                error,
                where.filename,
                where.lineno,
            )
            log.debug("The pictures of epoch %d", self.progress.epoch, exc_info=True)

    def _is_evaluated(self, epoch: int) -> bool:
        return epoch > 0 and (epoch % self.config.eval_interval == 0 or epoch == self.config.epochs)

    def _evaluated(self, epoch: int) -> dict[str, float]:
        if self.task.evaluate is None:
            return {}
        with torch.no_grad(), own_rng(mixed(self.config.seed, epoch) & 0xFFFFFFFF):
            return floats(self.task.evaluate(), "evaluate()")

    def _batches(self) -> Iterator[Any]:
        """Begin the rest of an epoch. Loaders of others may draw a seed when they begin: within an epoch it was drawn before."""
        batches = iter(self.task.loader)
        if self.progress.batch:
            self._draw_again()
        return batches

    def _draw_again(self) -> None:
        if self._resumed_rng is not None and self.progress.step == self._saved_step:
            Rng().load_state_dict(self._resumed_rng)

    def _take(self, metrics: Metrics) -> None:
        values = floats(metrics, "The step")
        wrong = [f"{name} is {values[name]}" for name in _WATCHED if not math.isfinite(values.get(name, 0.0))]
        refused = self._failing.failure if self._failing is not None else None
        if isinstance(refused, NonFiniteLoss) and refused is not self._refused:
            self._refused = refused  # told once: it stays until a later checkpoint is complete
            if self.config.on_nonfinite != "rollback":
                raise refused
            wrong = wrong or ["the last checkpoint would have held weights or optimizer state that are not finite"]
        if wrong:
            self._meet_nonfinite(wrong[0])
            return
        self.means.add(values)
        if self.progress.step % self.config.log_interval == 0:
            points = {f"step/{name}": value for name, value in values.items()}
            self._tracker.log_metrics(points, self.progress.step)
        if self._tracker.overtaken:
            raise RunHeld("Another process has taken this run over; this one stops without writing anything more.")

    def _meet_nonfinite(self, wrong: str) -> None:
        means = self.means
        means.skip()
        where = f"step {self.progress.step} (epoch {self.progress.epoch + 1}, batch {self.progress.batch})"
        if self.config.on_nonfinite == "abort":
            raise self._hopeless(f"At {where} {wrong}.", "or train on with on_nonfinite=skip or on_nonfinite=rollback")
        if means.skipped_in_a_row >= self.config.nonfinite_limit:
            raise self._hopeless(
                f"At {where} {wrong}, for the {means.skipped_in_a_row}th time in a row (nonfinite_limit)."
            )
        if self.config.on_nonfinite == "rollback":
            if means.rollbacks >= _ROLLBACKS:
                raise self._hopeless(
                    f"At {where} {wrong}. Going back to the last checkpoint {means.rollbacks} times did not help."
                )
            kept = self._saver.peek() if isinstance(self._saver, HasPeek) else None
            if kept is None:
                raise self._hopeless(f"At {where} {wrong}.")
            self._roll_back(kept, f"At {where} {wrong}")
        elif means.skipped_in_a_row == 1:
            log.warning("At %s %s: the step is skipped.", where, wrong)
        self._tracker.log_metrics({"step/nonfinite": 1.0}, self.progress.step)

    def _refuse_untrained(self) -> None:
        """A training is not done when none of its steps trained anything."""
        if self.progress.step and not self.means.trained:
            raise self._hopeless(
                f"None of {self.progress.step} steps had a finite loss and gradient: nothing was trained."
            )

    def _hopeless(self, what: str, otherwise: str = "") -> NonFiniteLoss:
        """Return the error that ends the training, with what there is to go on from."""
        try:
            kept = self._saver.peek() if isinstance(self._saver, HasPeek) else None
            readable = True
        except MltrainError:
            kept, readable = None, False
        remedy = "a lower learning rate or gradient clipping"
        if not readable:
            advice = f"The last checkpoint cannot be read now. Try: mltrain verify, then resume from an intact one with {remedy}"
        elif kept is not None and self.means.trained:
            advice = f"The checkpoint of step {kept['progress']['step']} is intact. Try: resume from it with {remedy}"
        else:
            advice = f"No checkpoint holds a trained state. Try: begin anew with {remedy}"
        return NonFiniteLoss(f"{what} {advice}{f', {otherwise}' if otherwise else ''}.")

    def _roll_back(self, kept: Mapping[str, Any], why: str) -> None:
        """Put what is trained back, but neither the position in the data nor the counters nor the schedule.

        So the batches that led here are passed over (as in PaLM, Chowdhery et al. 2022, section 5.1), steps are counted
        once, and every metric keeps one value a step.
        """
        step_parts = self.task.step.parts() if isinstance(self.task.step, HasParts) else {}
        self._late.finish()
        parts = {**step_parts, **self.task.state}
        # A schedule that follows a metric is one with the rates that it has set; any other is one with the counters.
        trained = {name: part for name, part in parts.items() if not (is_schedule(part) and counts_steps(part))}
        settings = self._built.settings()
        changes = self._built.before(kept, {})  # the checkpoint may be from before the configuration changed
        changes.apply(TrainState(trained).restore({name: changes.parts[name] for name in trained}))
        put_settings(settings)
        self.means.rollbacks += 1
        log.warning("%s: back to the state of step %d; the data go on from here.", why, kept["progress"]["step"])

    def _end_epoch(self) -> None:
        """Evaluate, judge and save; only then comes what may fail without costing the epoch."""
        self._late.finish()  # evaluation may swap weights
        if self.means.skipped > 1 and not self.means.steps:
            raise self._hopeless(
                f"None of the {self.means.skipped} steps of epoch {self.progress.epoch + 1} had a finite loss and gradient."
            )
        measured = self._measured()
        self.progress.epoch += 1
        self.progress.batch = 0
        step, epoch = self.progress.step, self.progress.epoch
        if self._is_evaluated(epoch):
            self._judge(measured)
        self.measured = measured
        rate = {name: measured.pop(name) for name in ("learning_rate",) if name in measured}
        seconds, self._epoch_began = time.monotonic() - self._epoch_began, time.monotonic()
        loss = {"loss_total": measured["train/loss"]} if "train/loss" in measured else {}
        self.history.add({**measured, **loss, **rate, "epoch": epoch, "step": step})
        # Before the checkpoint, which carries the points that the tracking server has not acknowledged.
        self._tracker.log_metrics({**measured, **rate, "epoch": epoch}, step)
        self._tracker.log_metrics({"system/epoch_seconds": seconds}, step, compared=False)
        self._save_if_due(epoch_ended=True)
        self._tracker.log_epoch(self.history)
        self.show()

    def _measured(self) -> dict[str, float]:
        """Return what was measured in the epoch that ends, its evaluation included.

        The code of users comes first, and nothing else has changed by then: when it raises, the state is saved as it is, and a
        resume begins with this evaluation. Its points are recorded then, once.
        """
        weights = _places(self.state.parts.values())
        try:
            evaluated = self._evaluated(self.progress.epoch + 1) if self._is_evaluated(self.progress.epoch + 1) else {}
            step = self.task.step
            rate = floats({"learning_rate": step.learning_rate}, "The step") if hasattr(step, "learning_rate") else {}
            of_step = floats(step.epoch_metrics(), "epoch_metrics()") if isinstance(step, HasEpochMetrics) else {}
        except Exception:
            if _places(self.state.parts.values()) == weights:
                self.means.ended = True
                self._save("step", None)
            else:
                log.error(
                    "The end of the epoch is not saved: its evaluation changed the model's parameters, then failed."
                )
            raise
        means = {**self.means.taken(), **of_step}
        return {**{f"train/{name}": value for name, value in means.items()}, **evaluated, **rate}

    def _judge(self, measured: Mapping[str, float]) -> None:
        for name in self._wanted:
            if name in measured:
                self._missed.discard(name)
            elif name not in self._missed and not any(name in row for row in self.history.rows):
                self._missed.add(name)
                log.warning(
                    "%s=%s was not measured at epoch %d.%s What was measured: %s.",
                    self._wanted[name],
                    name,
                    self.progress.epoch,
                    nearest(name, measured),
                    f"{', '.join(measured)}"[:500] or "nothing",
                )
        value = measured.get(self.config.best_metric)
        step = self.task.step
        if value is not None and isinstance(step, FollowsMetric) and step.follows is not None:
            step.evaluated(value)
        if value is not None and improves(value, self.best.value, self.config.best_mode):
            self.best.value, self.best.epoch, self.best.step = value, self.progress.epoch, self.progress.step
        watched = measured.get(self.stopping.metric)
        if watched is not None:
            self.stopping.update(watched, self.progress.epoch)

    def _save_if_due(self, epoch_ended: bool) -> None:
        seconds = time.monotonic() - self._saved_at
        moment = Moment(self.progress.step, self.progress.epoch, epoch_ended, seconds)
        is_best = epoch_ended and self.best.step == self.progress.step
        wanted, self._stop.checkpoint_wanted = self._stop.checkpoint_wanted, False
        if self._due.due(moment) or is_best or wanted or (epoch_ended and self.done):
            self._save("epoch" if epoch_ended else "step", self._late)
        elif self._stop.requested:
            self.save("interrupted")


class Best:
    """The best value of a metric so far, with its epoch and step: a stateful part."""

    def __init__(self, metric: str, mode: str) -> None:
        self._judged_by = [metric, mode]
        self.value: float | None = None
        self.epoch = 0
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return value, epoch and step, and what it is the best of."""
        return {"value": self.value, "epoch": self.epoch, "step": self.step, "judged_by": self._judged_by}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take value, epoch and step over; the best by another metric or mode is not the best by this one."""
        if state_dict.get("judged_by", self._judged_by) != self._judged_by:
            log.warning(
                "The best so far was judged by %s %s; it begins anew with %s %s.",
                *state_dict["judged_by"],
                *self._judged_by,
            )
            return
        self.value, self.epoch, self.step = state_dict["value"], state_dict["epoch"], state_dict["step"]


def check_schedule(task: Task, config: Config) -> None:
    """Refuse a schedule that follows a metric which the training does not measure, or takes for better what is worse.

    Raises:
        UsageError: with what to change.
    """
    mode = task.step.follows if isinstance(task.step, FollowsMetric) else None
    if mode is None:
        return
    if mode != config.best_mode:
        raise UsageError(
            f"ReduceLROnPlateau(mode={mode!r}) does not fit best_metric={config.best_metric}, which it follows. Expected the "
            f"mode of best_mode, {config.best_mode!r}. Try: ReduceLROnPlateau(optimizer, mode={config.best_mode!r}), or "
            f"best_mode={mode}."
        )
    if task.evaluate is None and not config.best_metric.startswith("train/"):
        raise UsageError(
            f"ReduceLROnPlateau follows best_metric={config.best_metric}, and the task has no evaluate() that measures it. "
            "Try: Task(..., evaluate=...), or best_metric=train/loss."
        )


def _wanted(task: Task, config: Config) -> dict[str, str]:
    """Return the names of metrics that the configuration relies on, with the key that names each."""
    wanted = dict.fromkeys(metrics_of(parse(config.retention)), "retention") if config.retention is not None else {}
    if config.early_stopping_patience is not None and config.early_stopping_metric is not None:
        wanted[config.early_stopping_metric] = "early_stopping_metric"
    default = Config.model_fields["best_metric"].default
    if task.evaluate is not None or config.best_metric != default or config.early_stopping_patience is not None:
        wanted[config.best_metric] = "best_metric"
    return wanted


def _places(parts: Iterable[Stateful]) -> list[tuple[int, int]]:
    """Return where in memory the parameters of modules are, and how often torch has changed each in place."""
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    return [
        (tensor.data_ptr(), tensor._version)
        for module in modules
        for tensor in module.parameters()
        if not is_lazy(tensor)
    ]


class Means:
    """Running means over the epoch under way: a stateful part, so that a resume in its middle loses nothing.

    Attributes:
        ended: whether all batches of the epoch are done, and only its evaluation is missing.
        steps, skipped: how many steps of the epoch trained, and how many were not finite.
        skipped_in_a_row: how many steps were not finite since the last that trained.
        rollbacks: how often the training went back to a checkpoint since then.
        trained: whether any step of the training has trained.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.ended = False
        self.steps = self.skipped = self.skipped_in_a_row = self.rollbacks = 0
        self.trained = False

    def add(self, values: Mapping[str, float]) -> None:
        """Take the values of a step in."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.steps += 1
        self.skipped_in_a_row = 0
        self.trained = True

    def skip(self) -> None:
        """Count a step that was not finite; none of its values is taken in."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def taken(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts, self.ended = {}, {}, False
        self.steps = self.skipped = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts, and what else is not as usual."""
        counters = {name: getattr(self, name) for name in _COUNTERS if getattr(self, name)}
        unusual = {**counters, **({} if self.trained or not self.skipped_in_a_row else {"trained": False})}
        return {"sums": dict(self._sums), "counts": dict(self._counts), "steps": self.steps, **unusual}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take sums and counts over."""
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
        for name in _COUNTERS:
            setattr(self, name, state_dict.get(name, 0))
        self.steps = state_dict.get("steps", max(self._counts.values(), default=0))
        self.trained = state_dict.get("trained", True)
        self.ended = bool(self.ended)
