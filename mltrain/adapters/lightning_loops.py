"""Step and epoch boundaries of Lightning's loops, for exact resumes.

Lightning calls its hooks before it records a step: ``on_train_batch_end`` comes before the step's metrics and validation,
``on_train_epoch_end`` before the metrics of the epoch. A resume from a checkpoint of that moment would lack these points. So the
state is captured after ``on_advance_end`` of the loops: the step (or epoch) is complete, and the next one has not begun.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mltrain.errors import UsageError
from mltrain.rng import Rng


class Boundaries:
    """Calls a function at a Trainer's step and epoch boundaries.

    Lightning restores the model, optimizers, schedules, callbacks and counters. This class saves and restores what Lightning
    omits: the random numbers, the loaders' positions at the start of an epoch, and the running means of
    ``self.log(on_epoch=True)``.

    Args:
        trainer: Lightning's Trainer.
        reached: called with ``batch`` or ``epoch`` at each boundary; after the last batch of an epoch only with
            ``epoch``.
    """

    def __init__(self, trainer: Any, reached: Callable[[str], None]) -> None:
        self._fit: Any = trainer.fit_loop
        self._epoch: Any = trainer.fit_loop.epoch_loop
        self._module: Any = trainer.lightning_module
        self._reached = reached
        self._resumed: Mapping[str, Any] | None = None
        self._sums: dict[str, Mapping[str, Any]] = {}
        self._previous_positions: list[Any] = []
        self._last_boundary: tuple[int, dict[str, Any]] | None = None
        replacements: dict[tuple[Any, str], Callable[..., None]] = {
            (self._epoch, "on_advance_end"): self._step_ended,
            (self._epoch, "on_run_start"): self._epoch_begins,
            (self._fit, "on_advance_end"): self._epoch_ended,
        }
        for (loop, hook), replacement in replacements.items():
            setattr(loop, hook, partial(replacement, getattr(loop, hook)))
        self._hooked = list(replacements)

    def close(self) -> None:
        """Restore Lightning's own hooks."""
        for loop, hook in self._hooked:
            vars(loop).pop(hook, None)

    @property
    def step(self) -> int:
        """Number of batches with an optimizer step, over all epochs."""
        return int(self._epoch._batches_that_stepped)

    def is_last(self, boundary: str) -> bool:
        """Whether Lightning ends the training at this boundary."""
        trainer = self._fit.trainer
        if boundary == "batch":
            return bool(self._epoch._is_training_done or (trainer.should_stop and self._fit._can_stop_early))
        by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        by_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs
        return bool(by_steps or by_epochs or (trainer.should_stop and self._fit._can_stop_early))

    def state(self, boundary: str) -> dict[str, Any]:
        """Return the state that Lightning's own checkpoint lacks."""
        own = {
            "boundary": boundary,
            "step": self.step,
            "rng": Rng().state_dict(),
            "loaders": self._positions(boundary),
            "measured": dict(self._fit.trainer.callback_metrics),
        }
        if boundary == "epoch":
            return own
        return {**own, "sums": self._running_sums(), "metrics": _metric_states(self._module)}

    def before_failed_step(self) -> dict[str, Any] | None:
        """Return :meth:`state` as it was before a failed step.

        Returns ``None`` if since the last boundary the optimizer may have changed weights, a batch was accumulated, or an epoch
        began.
        """
        completed, own = self._last_boundary or (-1, None)
        return own if completed == self._epoch.batch_progress.total.completed else None

    def invalidate(self) -> None:
        """Discard the remembered boundary: an optimizer is about to change weights."""
        self._last_boundary = None

    def resume(self, own: Mapping[str, Any]) -> None:
        """Restore a :meth:`state` once the first epoch begins.

        Call it in ``on_train_start``, when Lightning has created the loaders' iterator.
        """
        self._resumed = own
        self._sums = dict(own.get("sums", {}))
        if own["boundary"] == "epoch":
            Rng().load_state_dict(own["rng"])  # the hooks of the next epoch, and its iterator, draw from them

    def _epoch_begins(self, original: Callable[[Any], None], fetcher: Any) -> None:
        """Restore loaders, iterator and random numbers in the resumed epoch."""
        own, self._resumed = self._resumed, None
        if own is not None:
            loaders = [loader for loader in fetcher.combined_loader.flattened if _is_stateful(loader)]
            if len(loaders) != len(own["loaders"]):
                raise UsageError(
                    f"The checkpoint has the positions of {len(own['loaders'])} loaders, but {len(loaders)} loaders have "
                    "load_state_dict(). Expected the same loaders as when it was saved."
                )
            for loader, position in zip(loaders, own["loaders"], strict=True):
                loader.load_state_dict(position)
            iter(fetcher)
            if own["boundary"] == "batch":
                Rng().load_state_dict(own["rng"])
            for callback in self._fit.trainer.callbacks:
                if hasattr(callback, "get_accumulate_grad_batches"):  # Lightning skips its start of a resumed epoch
                    epoch = self._fit.trainer.current_epoch
                    self._fit.trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(epoch)
            for name, state in own.get("metrics", {}).items():
                _restore_metric(self._module.get_submodule(name), state)
            self._fit.trainer._logger_connector._callback_metrics.update(own["measured"])
        original(fetcher)
        if own is not None:
            self._epoch._batches_that_stepped = own["step"]
            # Otherwise Lightning repeats the validation, and does not step the schedules that follow a metric.
            self._fit._restarting = self._epoch.restarting = False
        self._previous_positions = own["loaders"] if own is not None else self._loader_states()
        self._remember_boundary()

    def _step_ended(self, original: Callable[[Any], None], fetcher: Any) -> None:
        self._add_sums()
        original(fetcher)
        if not self._epoch._num_ready_batches_reached() and not self._epoch._should_accumulate():
            self._reached("batch")
            self._remember_boundary()
        self._previous_positions = self._loader_states() if getattr(fetcher, "batches", None) else []

    def _remember_boundary(self) -> None:
        """Remember the state of a boundary within an epoch."""
        progress = self._epoch.batch_progress
        self._last_boundary = (progress.total.completed, self.state("batch")) if progress.current.completed else None

    def _epoch_ended(self, original: Callable[[], None]) -> None:
        original()
        self._reached("epoch")

    def _loader_states(self) -> list[Any]:
        loader = self._fit._combined_loader
        return [one.state_dict() for one in loader.flattened if _is_stateful(one)] if loader is not None else []

    def _positions(self, boundary: str) -> list[Any]:
        """Return the loaders' positions after the last trained batch.

        The fetcher reads a loader without a length one batch ahead. The positions are then those of the previous boundary.
        """
        ahead = boundary == "batch" and getattr(self._fit._data_fetcher, "batches", None)
        return self._previous_positions if ahead else self._loader_states()

    def _running_sums(self) -> dict[str, Any]:
        return {
            key: {"value": metric.value, "batch_size": getattr(metric, "cumulated_batch_size", None)}
            for key, metric in self._epoch._results.items()
            if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
        }

    def _add_sums(self) -> None:
        """Add the checkpoint's running sums to the new ones."""
        results = self._epoch._results
        for key in [key for key in self._sums if key in results]:
            before, metric = self._sums.pop(key), results[key]
            value = before["value"].to(metric.value.device)
            if metric.meta.is_mean_reduction:
                metric.value = value + metric.value
                metric.cumulated_batch_size = before["batch_size"].to(value.device) + metric.cumulated_batch_size
            elif metric.meta.is_sum_reduction:
                metric.value = value + metric.value
            else:
                metric.value = metric.meta.reduce_fx(value, metric.value)
            metric._computed = None


def align_progress(loops: Mapping[str, Any], boundary: str, *, by_steps: bool) -> None:
    """Make Lightning continue after the boundary of a checkpoint.

    Lightning continues correctly from the progress that it has in its own hooks: in ``on_train_batch_end``, after which it trains
    the next batch, and after a complete epoch, unless ``max_steps`` limits the training: then it would repeat that epoch.

    Args:
        loops: state of the loops in the checkpoint; changed in place.
        boundary: ``batch`` or ``epoch``.
        by_steps: whether ``max_steps`` limits the training.
    """
    fit = loops["fit_loop"]
    batches, epochs = fit["epoch_loop.batch_progress"], fit["epoch_progress"]
    for progress in (
        (batches["total"], batches["current"]) if boundary == "batch" else (epochs["total"], epochs["current"])
    ):
        progress["ready"] = progress["started"] = progress["completed"] = progress["processed"]
    if boundary == "epoch" and by_steps:
        batches["current"].update(ready=0, started=0, processed=0, completed=0)
    if boundary == "batch" or by_steps:
        batches["is_last_batch"] = False
        for progress in (batches["total"], batches["current"]):
            progress["completed"] = progress["processed"] - 1


def _is_stateful(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def _metric_states(module: Any) -> dict[str, Any]:
    """Return the states of torchmetrics, absent from ``state_dict`` by default."""
    return {
        name: {"count": part._update_count, "state": {key: getattr(part, key) for key in part._defaults}}
        for name, part in module.named_modules()
        if isinstance(getattr(part, "_defaults", None), dict) and hasattr(part, "_update_count")
    }


def _restore_metric(metric: Any, state: Mapping[str, Any]) -> None:
    for key, value in state["state"].items():
        setattr(metric, key, _on(metric.device, value))
    metric._update_count, metric._computed = state["count"], None


def _on(device: Any, value: Any) -> Any:
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
