"""What an engine logs, recorded once a key and step."""

from collections.abc import Callable, Mapping


class Curves:
    """Records metric points, the first of each key and step.

    Engines log a key twice at a step: the epoch, for one, beside losses and beside an evaluation.

    Args:
        record: takes the values of a step, and the step.
    """

    def __init__(self, record: Callable[[Mapping[str, float], int], None]) -> None:
        self._record = record
        self._step = -1
        self._keys: set[str] = set()

    def log(self, values: Mapping[str, float], step: int, *, recorded: bool = False) -> None:
        """Record what was measured at a step; never waits for the server.

        Args:
            values: name to value.
            step: optimizer steps done.
            recorded: the run has these points, or gets them with its checkpoint; they are only taken note of.
        """
        if step != self._step:
            self._step, self._keys = step, set()
        new = {key: value for key, value in values.items() if key not in self._keys}
        self._keys |= new.keys()
        if new and not recorded:
            self._record(new, step)
