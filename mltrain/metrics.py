"""Metrics of steps and evaluations, and curves of other engines."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mltrain.errors import UsageError

Metrics = Mapping[str, float | Tensor]


def floats(values: Any, source: str) -> dict[str, float]:
    """Return metrics as floats by name.

    Args:
        values: name to number: Python's, NumPy's, or a tensor with one element.
        source: where they come from, for the message.

    Raises:
        UsageError: ``values`` is not a mapping, a name is not text, or a value is not a real number.
    """
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{source} returned {_described(values)}. Expected a mapping from names to numbers, such as {{'val/loss': 0.5}}."
        )
    numbers = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"{source} returned a metric called {name!r:.80}. Expected text such as 'val/loss'.")
        try:
            number = value if isinstance(value, float) else value.item() if hasattr(value, "item") else value
            if isinstance(number, (str, bytes)):
                raise TypeError("text")
            # No file or database takes a lone surrogate, by which Python represents undecodable bytes.
            numbers[name if name.isascii() else name.encode(errors="backslashreplace").decode()] = float(number)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UsageError(
                f"{source} returned {_described(value)} as the metric {name!r:.200}. Expected one real number: a float, an "
                "int, or an array or tensor with one element."
            ) from None
    return numbers


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else f", {value!r:.80},")


class Curves:
    """Records the first metric point of each key and step.

    Engines may log a key twice at a step, such as the epoch beside losses and beside an evaluation.

    Args:
        record: called with the values of a step, and the step.
    """

    def __init__(self, record: Callable[[Mapping[str, float], int], None]) -> None:
        self._record = record
        self._step = -1
        self._keys: set[str] = set()

    def log(self, values: Mapping[str, float], step: int, *, recorded: bool = False) -> None:
        """Record a step's metrics without waiting for the server.

        Args:
            values: name to value.
            step: optimizer steps done.
            recorded: whether the run already has these points, or gets them with its checkpoint; then only their keys are noted.
        """
        if step != self._step:
            self._step, self._keys = step, set()
        new = {key: value for key, value in values.items() if key not in self._keys}
        self._keys |= new.keys()
        if new and not recorded:
            self._record(new, step)
