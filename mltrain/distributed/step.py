"""A step that several ranks do together, and a request to stop that all of them follow after the same step."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mltrain.data import Divisible
from mltrain.distributed.gradients import Gradients
from mltrain.distributed.world import World
from mltrain.metrics import Metrics, floats
from mltrain.state import Stateful
from mltrain.trainer.ports import Stop

_OFFERED = ("parts", "prepare", "late_copy", "follows", "evaluated", "learning_rate")
"""What a step may offer beside being called; the wrapper offers what the step does."""


class AgreedStop:
    """A request to stop that came to any rank, as of the last step that all of them did.

    Args:
        own: the request that came to this process.
    """

    def __init__(self, own: Stop) -> None:
        self.own = own
        self.checkpoint_wanted = False
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether the training is to stop at the next step boundary."""
        return self._requested

    def agree(self, reasons: Sequence[str | None], wanted: Sequence[bool]) -> None:
        """Take over what came to the ranks."""
        for reason in reasons:
            if reason is not None and not self._requested:
                self._requested = True
                ask: Any = getattr(self.own, "request", None)
                if ask is not None:
                    ask(reason)
        self.checkpoint_wanted = self.checkpoint_wanted or any(wanted)
        self.own.checkpoint_wanted = False

    def asked(self) -> tuple[str | None, bool]:
        """Return the reason to stop that came to this process, and whether it wants a checkpoint."""
        reason = getattr(self.own, "reason", "a request") if self.own.requested else None
        return reason, self.own.checkpoint_wanted


class _Together:
    """Calls a step, and returns the metrics of the whole batch."""

    def __init__(self, inner: Any, world: World, loader: Divisible, gradients: Gradients, stop: AgreedStop) -> None:
        self.inner = inner
        self._world = world
        self._loader = loader
        self._gradients = gradients
        self._stop = stop

    def __call__(self, batch: Any) -> Metrics:
        weight = self._loader.weight
        self._gradients.weigh(weight)
        self._gradients.expect()
        kept = self._accumulators() if weight == 0 else []  # the item is there so that this rank has something to do
        with self._world.collectives_of_others():
            values = floats(self.inner(batch), "The step")
        for part, state in kept:
            part.load_state_dict(state)
        self._gradients.end_step()
        self._gradients.share_buffers()
        ranks = self._world.gather((weight, values, *self._stop.asked()))
        self._stop.agree([reason for *_, reason, _ in ranks], [wanted for *_, wanted in ranks])
        return mean([(weight, values) for weight, values, *_ in ranks])

    def _accumulators(self) -> list[tuple[Stateful, Any]]:
        parts = self.inner.parts() if hasattr(self.inner, "parts") else {}
        return [(part, copy.deepcopy(part.state_dict())) for name, part in parts.items() if name == "metrics"]


class _WithEpochMetrics(_Together):
    def epoch_metrics(self) -> Mapping[str, float]:
        """Return the metrics of the epoch: those that are the same on all ranks, else the mean over them."""
        values = floats(self.inner.epoch_metrics(), "epoch_metrics()")
        return mean([(1.0, other) for other in self._world.gather(values)])


def together(inner: Any, world: World, loader: Divisible, gradients: Gradients, stop: AgreedStop) -> Any:
    """Return a step that all ranks do together, with what the step offers beside being called."""
    base = _WithEpochMetrics if hasattr(inner, "epoch_metrics") else _Together
    # Properties of the class, because the protocols of a step are looked up there, and not in an instance's __getattr__.
    offered = {name: _offer(name) for name in _OFFERED if hasattr(inner, name)}
    return type(base.__name__, (base,), offered)(inner, world, loader, gradients, stop)


def _offer(name: str) -> property:
    return property(lambda step: getattr(step.inner, name))


def mean(values: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the weighted mean of each metric over the ranks that measured it; where all measured the same, exactly that.

    Args:
        values: of each rank its weight, and what it measured. A rank of weight 0 counts only where no other measured a name.
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
