"""A project's task: step, loader, evaluation, and checks of them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mltrain.checkpoint.policies import parse
from mltrain.checkpoint.retention import Policy, metrics_of
from mltrain.config import Config
from mltrain.data import Loader
from mltrain.errors import ConfigError, UsageError
from mltrain.state import Stateful, TrainState
from mltrain.steps import FollowsMetric, HasDevice, HasParts, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A step, its training data, and its evaluation.

    Attributes:
        step: trains on one batch and returns metrics.
        loader: yields the batches and knows its position.
        evaluate: measures on held-out data and returns floats such as ``val/loss``. It calls ``eval()`` of the model itself;
            the trainer runs it without gradients, and its data may be on the CPU. If it raises, the trainer saves the state
            from before the evaluation and ends with that error; a resume evaluates again.
        evaluate_on: the ranks that evaluate if several processes train: ``rank 0``, while the others wait, or ``all
            ranks``, each on its part of the data. With ``all ranks`` the trainer averages the results; for parts of different
            sizes sum over the ranks yourself, as torchmetrics does.
        images: draws pictures of fixed held-out samples, by name: PIL images, figures, files, arrays or tensors (see
            :func:`mltrain.delivery.images.as_image`). Called after the epoch is saved; an error is logged as a warning.
        report: evaluates thoroughly, writes tables and pictures into a folder, and returns floats.
        state: further parts of every checkpoint, by name.
        policy: the retention policy, instead of ``max_to_keep`` and ``checkpoint_mode``; the key ``retention`` overrides it.
        preview: draws pictures of the data, by name, like ``images``. Called once, before the first step of a training; an
            error is logged as a warning.
        predictor: returns the module for an MLflow model, which other programs load without mltrain, and an example of its
            input with at least two items. The module maps one tensor to one tensor, without branches on values of tensors
            (``torch.export`` traces it). The first dimension is the batch, the others are fixed. Called after the best
            weights are loaded.
        shard: with several processes and ``strategy=fsdp``, shards the models in place: tensor parallelism first if used,
            then torch's ``fully_shard``. All processes call it at once, after ``build()``. Returns the ``DeviceMesh`` over
            which batches are divided, or ``None`` for all processes. If this attribute is ``None``, every model with
            parameters is sharded over all processes, and each block of a ``ModuleList`` in it separately.
        summary: lines about model and data, printed before the training begins.
    """

    step: Step
    loader: Loader
    evaluate: Callable[[], Mapping[str, float]] | None = None
    images: Callable[[], Mapping[str, Any]] | None = None
    report: Callable[[Path], Mapping[str, float]] | None = None
    state: Mapping[str, Stateful] = field(default_factory=dict)
    policy: Policy | None = None
    preview: Callable[[], Mapping[str, Any]] | None = None
    summary: Sequence[str] = ()
    evaluate_on: Literal["rank 0", "all ranks"] = "rank 0"
    predictor: Callable[[], tuple[nn.Module, torch.Tensor]] | None = None
    shard: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("step", "evaluate", "images", "report", "preview", "predictor", "shard"):
            part = getattr(self, name)
            if not callable(part) and (name == "step" or part is not None):
                raise UsageError(f"{name}={part!r:.80} of the task cannot be called. Expected a function.")
        if not isinstance(self.policy, Policy | None):
            raise UsageError(
                f"policy={self.policy!r:.80} of the task is invalid. Expected an mltrain.Policy, such as Latest(3) | Best(1)."
            )
        if self.evaluate_on not in ("rank 0", "all ranks"):
            raise UsageError(
                f"evaluate_on={self.evaluate_on!r:.80} of the task is invalid. Expected 'rank 0' or 'all ranks'."
            )
        if not isinstance(self.state, Mapping) or not all(isinstance(name, str) for name in self.state):
            raise UsageError(
                f"state={self.state!r:.80} of the task is invalid. Expected a mapping from names to parts."
            )
        if not isinstance(self.loader, Loader):
            raise UsageError(
                f"A {type(self.loader).__name__} cannot report its position, so a training could not resume within an "
                "epoch. Expected a loader with state_dict() and load_state_dict(). Try: "
                "mltrain.ResumableLoader(dataset, batch_size), mltrain.StreamLoader for an iterable dataset, or "
                "torchdata's StatefulDataLoader."
            )

    def parts(self) -> dict[str, Stateful]:
        """Return the step's stateful parts, then those of :attr:`state`.

        Raises:
            UsageError: two parts have the same name, or one has no ``state_dict`` and ``load_state_dict``.
        """
        state = TrainState()
        for parts in (self.step.parts() if isinstance(self.step, HasParts) else {}, self.state):
            for name, part in parts.items():
                state.add(name, part)
        return state.parts


def prepare_step(task: Task, config: Config, device: torch.device) -> None:
    """Prepare the step for the device and the configured precision.

    A step without ``prepare(device, amp)`` computes on the device of its parameters. This logs a warning if that is
    not the device that ``device=auto`` chose, or if the step has no parameters.

    Args:
        task: the task to train.
        config: the keys ``device`` and ``amp``.
        device: the device that ``config.device`` means on this machine.

    Raises:
        ConfigError: the step has no ``prepare``, and precision or device are not as configured.
    """
    if isinstance(task.step, HasDevice):
        task.step.prepare(device, config.amp)
        return
    step = f"the step, a {type(task.step).__name__}, has no prepare(device, amp)"
    if config.amp != "off":
        raise ConfigError(
            f"amp={config.amp} has no effect: {step}. Expected amp=off, or a step that computes in that precision. Try: "
            "amp=off, or give the step a method prepare(self, device, amp), which the trainer calls before the first step."
        )
    there = {parameter.device for parameter in _parameters(task)}
    if any(one.type == device.type and device.index in (None, one.index) for one in there):
        return
    where = f"its parameters are on {', '.join(sorted(map(str, there)))}" if there else "it has no parameters to tell"
    if there and config.device != "auto":
        raise ConfigError(
            f"device={config.device} has no effect: {step}, and {where}. Expected parameters on that device. Try: "
            f"device={next(iter(there)).type}, build the model on config.device, or give the step a method "
            "prepare(self, device, amp)."
        )
    if device.type != "cpu":
        log.warning("device=%s chose %s, but %s, and %s.", config.device, device, step, where)


def _parameters(task: Task) -> Iterator[torch.Tensor]:
    for part in task.parts().values():
        if isinstance(part, nn.Module):
            yield from part.parameters()
        elif isinstance(part, torch.optim.Optimizer):
            for group in part.param_groups:
                yield from group["params"]


def check_predictor(task: Task, config: Config) -> None:
    """Check that a task with LoggedModels has a predictor.

    Raises:
        UsageError: it has none.
    """
    if config.logged_models != "none" and task.predictor is None:
        raise UsageError(
            f"logged_models={config.logged_models} needs a predictor, and the task has none. Expected Task(..., predictor=...), "
            "which returns a module and an example of its input. Try: logged_models=none"
        )


def check_schedule(task: Task, config: Config) -> None:
    """Check metric and mode of a ``ReduceLROnPlateau``.

    Raises:
        UsageError: nothing measures the metric, or the schedule's mode is not ``best_mode``.
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


def metrics_relied_on(task: Task, config: Config) -> dict[str, str]:
    """Return the metrics that the configuration needs, with their keys."""
    if config.retention is not None:
        metrics = dict.fromkeys(metrics_of(parse(config.retention)), "retention")
    else:
        metrics = dict.fromkeys(metrics_of(task.policy), "policy")
    if config.early_stopping_patience is not None and config.early_stopping_metric is not None:
        metrics[config.early_stopping_metric] = "early_stopping_metric"
    default = Config.model_fields["best_metric"].default
    if task.evaluate is not None or config.best_metric != default or config.early_stopping_patience is not None:
        metrics[config.best_metric] = "best_metric"
    return metrics
