"""The rendezvous store of torchrun, without what workers of an earlier life left in it."""

import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

_LOOK_SECONDS = 0.02


def without_earlier_lives(store: Any, rank: int, size: int, seconds: float) -> PrefixStore:
    """Return a part of the rendezvous store that only the processes of now know.

    torchrun keeps its store when it starts workers again, and torch 2.13 would connect to the addresses that dead ones left
    there. The restart count cannot tell lives apart: it is each node's own. So rank 0 publishes a token and goes on when
    every rank has answered to it, and the others when rank 0 has repeated their answers.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    if rank == 0:
        store.set("life", own)
        keys = [f"{own}/{other}" for other in range(1, size)]
        store.wait(keys, timedelta(seconds=seconds))
        store.set(f"{own}/all", " ".join(store.get(key).decode() for key in keys))
        return PrefixStore(own, store)
    while time.monotonic() < deadline:
        life = store.get("life").decode()
        store.set(f"{life}/{rank}", own)
        while store.get("life").decode() == life and time.monotonic() < deadline:
            if store.check([f"{life}/all"]) and own in store.get(f"{life}/all").decode().split():
                return PrefixStore(life, store)
            time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"rank 0 did not answer within {seconds:.0f} s")
