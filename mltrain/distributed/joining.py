"""Connects the ranks of a training, within a time limit."""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mltrain.errors import PeerLost, UsageError
from mltrain.redaction import first_line

_POLL_SECONDS = 0.02


def peer_seconds() -> float:
    """Return ``MLTRAIN_PEER_SECONDS``, default 1800.

    Raises:
        UsageError: it is no number of seconds.
    """
    given = os.environ.get("MLTRAIN_PEER_SECONDS") or "1800"
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 10**7:
        raise UsageError(
            f"MLTRAIN_PEER_SECONDS is invalid. Expected seconds, 1 to 1e7, got {given!r:.40}. Try: MLTRAIN_PEER_SECONDS=1800"
        )
    return seconds


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


def fresh_store(store: Any, rank: int, size: int, seconds: float) -> PrefixStore:
    """Return the current workers' own part of the rendezvous store.

    torchrun keeps its store when it restarts workers, and torch 2.13 would connect to the addresses of dead workers in it.
    The restart count is no key for a restart, because each node has its own. So rank 0 publishes a token and waits until
    every rank has answered it; the others wait until rank 0 has repeated their answers. An answer holds the number of ranks
    that its rank expects.

    Args:
        store: of the rendezvous.
        rank: of this process.
        size: number of ranks.
        seconds: to wait for the other ranks.

    Raises:
        RuntimeError: rank 0 did not answer in time, or expects another number of ranks. Rank 0 raises it for the others.
    """
    own, deadline = f"{uuid.uuid4().hex}:{size}", time.monotonic() + seconds
    if rank == 0:
        store.set("token", own)
        answers = [own]
        for other in range(1, size):
            store.wait([f"{own}/{other}"], timedelta(seconds=max(0.001, deadline - time.monotonic())))
            answers.append(store.get(f"{own}/{other}").decode())
            if not _agree(answers):
                break
        store.set(f"{own}/all", " ".join(answers))
        _check(answers)
        return PrefixStore(own, store)
    while time.monotonic() < deadline:
        token = store.get("token").decode()
        store.set(f"{token}/{rank}", own)
        while store.get("token").decode() == token and time.monotonic() < deadline:
            answers = store.get(f"{token}/all").decode().split() if store.check([f"{token}/all"]) else []
            if own in answers:
                _check(answers)
                return PrefixStore(token, store)
            time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"rank 0 did not answer within {seconds:.0f} s")


def _agree(answers: Sequence[str]) -> bool:
    return len({answer.partition(":")[2] for answer in answers}) == 1


def _check(answers: Sequence[str]) -> None:
    if not _agree(answers):
        sizes = [answer.partition(":")[2] for answer in answers]
        raise RuntimeError(f"WORLD_SIZE is {sizes[0]} on rank 0 and {sizes[-1]} on rank {len(sizes) - 1}")
