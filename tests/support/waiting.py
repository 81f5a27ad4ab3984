"""The only clock of the tests: waiting for an event, and letting time pass where time itself is the fault."""

import time
from collections.abc import Callable


def eventually(happened: Callable[[], object], what: object = "the event", seconds: float = 120.0) -> None:
    """Wait until something has happened; fail when it has not after ``seconds``, which only end the wait."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what() if callable(what) else what} did not happen"
        time.sleep(0.01)


def let_pass(seconds: float) -> None:
    """Let time pass: the drawn moment of a fault, or how long a fault lasts. Never a wait for an event."""
    time.sleep(seconds)
