"""Connects the ranks of a training, within a time limit."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import Any

from torch.distributed.rendezvous import rendezvous

from mltrain.distributed.fresh_store import fresh_store
from mltrain.errors import PeerLost
from mltrain.redaction import first_line


def joined(seconds: float) -> tuple[Any, int, int]:
    """Return the store, the rank and the number of ranks.

    Args:
        seconds: to wait for the other ranks.

    Raises:
        PeerLost: the others did not join in time, or a launcher's variables differ between ranks.
    """

    def join() -> tuple[Any, int, int]:
        store, rank, size = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))
        return fresh_store(store, rank, size, seconds), rank, size

    try:
        found: tuple[Any, int, int] = within(seconds, join)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise did_not_connect(first_line(error) or f"no answer within {seconds:.0f} s") from error
    return found


def did_not_connect(reason: str) -> PeerLost:
    """Return the error of ranks that cannot connect."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    got = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
    return PeerLost(
        f"The ranks of this training did not connect: {reason.rstrip('.')}. Expected each RANK once, the others equal on all, "
        f"and rank 0 on a free port of MASTER_ADDR, got {got}. Try: the launcher again, or MLTRAIN_PEER_SECONDS for slow ranks"
    )


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return what a function returns, called in a thread.

    While torch connects, Python handles no signals, and a server of another kind on the port lets it wait without end. So a
    thread waits, which is left behind after ``seconds`` or a signal.

    Raises:
        TimeoutError: the function takes longer.
    """
    answer: Future[Any] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            answer.set_exception(error)

    Thread(target=call, name="mltrain-joining", daemon=True).start()
    return answer.result(seconds)
