"""Rank-local parts in a checkpoint of several ranks.

Common parts, and rank 0's rank-local ones, are stored like those of a single process. ``progress`` has the number of ranks as
``world``, and the rank-local parts of the others as ``ranks``: by rank from 1, each a mapping from name to state.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mltrain.batches import mixed
from mltrain.errors import StateMismatch
from mltrain.rng import Rng, seed_everything

log = logging.getLogger(__name__)

RNG = "rng"
"""The part with the random number generators, which is always rank-local."""


def with_own_parts(state: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rank 0's state with all ranks' own parts.

    Args:
        state: name to state of every part on rank 0.
        own: the rank-local parts of each rank, from rank 0.
    """
    progress = {**state["progress"], "world": len(own), "ranks": [dict(parts) for parts in own[1:]]}
    return {**state, "progress": progress}


def parts_of_rank(parts: Mapping[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return a checkpoint's parts for one of ``size`` ranks.

    If another number of ranks wrote it, ranks beyond 0 seed their generators from the seed of the loader, the step and the
    rank.

    Raises:
        StateMismatch: another number of ranks wrote the checkpoint, and it has other rank-local parts than generators, such
            as metrics within an epoch.
    """
    progress = parts.get("progress", {})
    world, ranks = progress.get("world", 1), progress.get("ranks", [])
    if world == size:
        return {**parts, **(ranks[rank - 1] if rank else {})}
    own = sorted({name for one in ranks for name in one} - {RNG})
    if own:
        raise StateMismatch(
            f"a training of another number of processes: expected {world}, got {size}, and each has its own {', '.join(own)}",
            advice=f"Resume with {world} processes (torchrun --nproc-per-node {world}), or from a checkpoint at the end of an "
            "epoch.",
        )
    if rank == 0:
        log.warning(
            "The checkpoint was written by %d processes, and this training has %d. The data continue at the same position; "
            "sums in another order and other random numbers in the model make values differ slightly.",
            world,
            size,
        )
        return dict(parts)
    return {**parts, RNG: fresh_rng(int(parts.get("loader", {}).get("seed", 0)), progress.get("step", 0), rank)}


def fresh_rng(seed: int, step: int, rank: int) -> dict[str, Any]:
    """Return seeded generators for a rank that has none.

    The generators of this process are unchanged.
    """
    generators = Rng()
    before = generators.state_dict()
    seed_everything(mixed(seed, step, rank) & 0xFFFFFFFF)
    fresh = generators.state_dict()
    generators.load_state_dict(before)
    return fresh
