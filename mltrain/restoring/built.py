"""What the parts of a training were built with, recorded in every checkpoint."""

import copy
import json
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from mltrain.restoring.optimizers import is_optimizer
from mltrain.restoring.plain_values import plain
from mltrain.restoring.undo import is_lazy
from mltrain.schedules import (
    counts_steps,
    functions_of,
    is_schedule,
    same_optimizer,
    settings_of,
)
from mltrain.state import Stateful

log = logging.getLogger(__name__)


class Built:
    """What the parts of a training were when they were built, before anything was restored.

    Args:
        parts: of the step and the task, by name.

    Attributes:
        parts: the same.
        schedules: the learning rate schedules among them.
        fresh: the states of the schedules as they were built.
        groups: the settings of each optimizer's groups, by its identity.
        now: plain values of each part, as :attr:`record` has them.
        record: what a checkpoint holds of it, as JSON. It depends on nothing else, so equal trainings have equal checkpoints.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)
        self.schedules = {name: part for name, part in parts.items() if is_schedule(part)}
        self.fresh = {name: copy.deepcopy(dict(part.state_dict())) for name, part in self.schedules.items()}
        self.groups = {
            id(one): settings_of(one)
            for one in [
                *(part for part in parts.values() if is_optimizer(part)),
                *(part.optimizer for part in self.schedules.values()),  # type: ignore[attr-defined]
            ]
        }
        self.now = json.loads(json.dumps({name: self._described(name) for name in parts}))
        self.record = json.dumps({"parts": self.now})

    def _described(self, name: str) -> Any:
        """Return the plain values of a part as it was built."""
        part: Any = self.parts[name]
        if is_optimizer(part):
            return plain(settings_of(part))
        if name in self.schedules:
            return {**plain(self.fresh[name]), "$functions": list(functions_of(part))}
        if isinstance(part, nn.Module):
            small = ((key, one) for key, one in part.named_buffers() if not is_lazy(one) and one.numel() <= 4)
            return {key: one.tolist() for key, one in small if not (one.is_quantized or one.is_sparse or one.is_meta)}
        try:
            return plain(part.state_dict())
        except Exception as error:  # noqa: BLE001 - a part may have no state before it was used
            log.debug("The part %r has no state yet: %r", name, error)
            return {}

    def settings(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return optimizers with the present settings of their groups, but those whose schedule follows a metric."""
        follow = [one for one in self.schedules.values() if not counts_steps(one)]
        return [
            (part, settings_of(part))
            for part in self.parts.values()
            if is_optimizer(part) and not any(same_optimizer(part, one.optimizer) for one in follow)  # type: ignore[attr-defined]
        ]
