"""Running means over the epoch under way."""

from collections.abc import Mapping
from typing import Any

_COUNTERS = ("ended", "skipped", "skipped_in_a_row", "rollbacks")


class Means:
    """Running means over the epoch under way: a stateful part, so that a resume within an epoch loses nothing.

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

    def taken(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts, self.ended = {}, {}, False
        self.steps = self.skipped = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return sums, counts, and the counters that are not zero."""
        counters = {name: getattr(self, name) for name in _COUNTERS if getattr(self, name)}
        unusual = {**counters, **({} if self.trained or not self.skipped_in_a_row else {"trained": False})}
        return {"sums": dict(self._sums), "counts": dict(self._counts), "steps": self.steps, **unusual}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over sums, counts and counters."""
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
        for name in _COUNTERS:
            setattr(self, name, state_dict.get(name, 0))
        self.steps = state_dict.get("steps", max(self._counts.values(), default=0))
        self.trained = state_dict.get("trained", True)
        self.ended = bool(self.ended)
