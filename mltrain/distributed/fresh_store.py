"""torchrun's rendezvous store, without the keys of earlier workers."""

import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

_POLL_SECONDS = 0.02


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
