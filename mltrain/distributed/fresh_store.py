"""torchrun's rendezvous store, without the keys of earlier workers."""

import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

_POLL_SECONDS = 0.02


def fresh_store(store: Any, rank: int, size: int, seconds: float) -> PrefixStore:
    """Return the current workers' own part of the rendezvous store.

    torchrun keeps its store when it restarts workers, and torch 2.13 would connect to the addresses of dead workers in it.
    The restart count is no key for a restart, because each node has its own. So rank 0 publishes a token and waits until
    every rank has answered it; the others wait until rank 0 has repeated their answers.

    Args:
        store: of the rendezvous.
        rank: of this process.
        size: number of ranks.
        seconds: to wait for the other ranks.

    Raises:
        RuntimeError: rank 0 did not answer in time. Rank 0 raises it for the others.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    if rank == 0:
        store.set("token", own)
        keys = [f"{own}/{other}" for other in range(1, size)]
        store.wait(keys, timedelta(seconds=seconds))
        store.set(f"{own}/all", " ".join(store.get(key).decode() for key in keys))
        return PrefixStore(own, store)
    while time.monotonic() < deadline:
        token = store.get("token").decode()
        store.set(f"{token}/{rank}", own)
        while store.get("token").decode() == token and time.monotonic() < deadline:
            if store.check([f"{token}/all"]) and own in store.get(f"{token}/all").decode().split():
                return PrefixStore(token, store)
            time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"rank 0 did not answer within {seconds:.0f} s")
