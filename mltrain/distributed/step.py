"""Steps and stop requests that all ranks execute together."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from mltrain.data import Divisible
from mltrain.distributed.gradients import Gradients
from mltrain.distributed.together import Together
from mltrain.distributed.world import World
from mltrain.metrics import Metrics, floats
from mltrain.state import Stateful
from mltrain.trainer.ports import Stop

_OFFERED = ("parts", "prepare", "late_copy", "follows", "evaluated", "learning_rate")
"""Optional attributes of a step; the wrapper has those that the step has."""


class AgreedStop:
    """A stop request, agreed by all ranks after each step.

    Args:
        own: the request to this process.

    Attributes:
        requested, checkpoint_wanted: see :class:`~mltrain.trainer.ports.Stop`.
    """

    def __init__(self, own: Stop) -> None:
        self.own = own
        self.checkpoint_wanted = False
        self.requested = False

    def agree(self, reasons: Sequence[str | None], wanted: Sequence[bool]) -> None:
        """Take over the requests to all ranks."""
        for reason in reasons:
            if reason is not None and not self.requested:
                self.requested = True
                ask: Any = getattr(self.own, "request", None)
                if ask is not None:
                    ask(reason)
        self.checkpoint_wanted = self.checkpoint_wanted or any(wanted)
        self.own.checkpoint_wanted = False

    def asked(self) -> tuple[str | None, bool]:
        """Return this process's stop reason (if any) and checkpoint request."""
        reason = getattr(self.own, "reason", "a request") if self.own.requested else None
        return reason, self.own.checkpoint_wanted


@dataclass
class _Synchronized:
    """Calls a step and returns the whole batch's metrics."""

    inner: Any
    world: World
    loader: Divisible
    gradients: Gradients
    stop: AgreedStop

    def __call__(self, batch: Any) -> Metrics:
        weight = self.loader.weight
        self.gradients.weigh(weight)
        self.gradients.expect()
        kept = self._accumulators() if weight == 0 else []  # this batch only keeps the rank's collectives in step
        with self.world.foreign_collectives():
            values = floats(self.inner(batch), "The step")
        for part, state in kept:
            getattr(part, "forget", part.load_state_dict)(state)
        self.gradients.end_step()
        self.gradients.share_buffers()
        ranks = self.world.gather((weight, values, *self.stop.asked()))
        self.stop.agree([reason for *_, reason, _ in ranks], [wanted for *_, wanted in ranks])
        return mean([(weight, values) for weight, values, *_ in ranks])

    def _accumulators(self) -> list[tuple[Stateful, Any]]:
        parts = self.inner.parts() if hasattr(self.inner, "parts") else {}
        return [(part, copy.deepcopy(part.state_dict())) for name, part in parts.items() if name == "metrics"]


class _WithEpochMetrics(_Synchronized):
    def __init__(self, inner: Any, world: World, *others: Any) -> None:
        super().__init__(inner, world, *others)
        self._together = Together(world, lambda: floats(inner.epoch_metrics(), "epoch_metrics()"), "epoch_metrics()")

    def epoch_metrics(self) -> Mapping[str, float]:
        """Return each epoch metric's mean over the ranks."""
        return mean([(1.0, measured) for measured in self._together()])


def synchronized(inner: Any, world: World, loader: Divisible, gradients: Gradients, stop: AgreedStop) -> Any:
    """Return a step on all ranks with ``inner``'s optional attributes."""
    base = _WithEpochMetrics if hasattr(inner, "epoch_metrics") else _Synchronized
    # As properties of the class, because protocols look attributes up in the class, not in an instance's __getattr__.
    offered = {name: property(attrgetter(f"inner.{name}")) for name in _OFFERED if hasattr(inner, name)}
    return type(base.__name__, (base,), offered)(inner, world, loader, gradients, stop)


def mean(values: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return each metric's weighted mean over ranks that measured it.

    If all measured the same value, the mean is exactly that value.

    Args:
        values: weight and metrics of each rank. A rank of weight 0 counts only for metrics that no other rank measured.
    """
    names = dict.fromkeys(name for _, measured in values for name in measured)
    means = {}
    for name in names:
        pairs = [(weight, measured[name]) for weight, measured in values if name in measured]
        pairs = [pair for pair in pairs if pair[0] > 0] or [(1.0, value) for _, value in pairs]
        first = pairs[0][1]
        if all(value == first for _, value in pairs):
            means[name] = first
        else:
            total = math.fsum(weight for weight, _ in pairs)
            means[name] = sum(weight * value for weight, value in pairs) / total
    return means
