"""What a checkpoint of several ranks holds of each of them, beside what they have in common.

The parts that are the same on all ranks, and rank 0's own, stand where those of a single process do. ``progress`` holds how
many ranks there were, ``world``, and the own parts of the others, ``ranks``: by rank from 1, each a mapping from a part's name
to its state.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mltrain.batches import mixed
from mltrain.errors import StateMismatch
from mltrain.rng import Rng, seed_everything

log = logging.getLogger(__name__)

RNG = "rng"
"""The part with the generators of random numbers, which every rank has for itself."""


def with_own_parts(state: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of rank 0 with the own parts of each rank, from rank 0."""
    progress = {**state["progress"], "world": len(own), "ranks": [dict(parts) for parts in own[1:]]}
    return {**state, "progress": progress}


def parts_of_rank(parts: Mapping[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return the parts of a checkpoint as one of ``size`` ranks has them.

    Where the checkpoint is of another number of ranks, those beyond rank 0 begin with random numbers that follow from the seed of
    the loader, the step and the rank.

    Raises:
        StateMismatch: the checkpoint has own parts of its ranks, such as metrics in the middle of an epoch, and was
            written by another number of them.
    """
    progress = parts.get("progress", {})
    world, ranks = progress.get("world", 1), progress.get("ranks", [])
    if world == size:
        return {**parts, **(ranks[rank - 1] if rank else {})}
    own = sorted({name for one in ranks for name in one} - {RNG})
    if own:
        raise StateMismatch(
            f"a training of another number of processes: {world} then, {size} now, and each has its own {', '.join(own)}",
            advice=f"Resume with {world} processes, as with torchrun --nproc-per-node {world}, or from a checkpoint at the end "
            "of an epoch.",
        )
    if rank == 0:
        log.warning(
            "The checkpoint was written by %d processes, and this training has %d. The data go on where they were; sums are "
            "in another order and random numbers within the model are others, so the values differ in the last digits.",
            world,
            size,
        )
        return dict(parts)
    return {**parts, RNG: fresh_rng(int(parts.get("loader", {}).get("seed", 0)), progress.get("step", 0), rank)}


def fresh_rng(seed: int, step: int, rank: int) -> dict[str, Any]:
    """Return generators for a rank that has none from a checkpoint; those of this process stay as they are."""
    generators = Rng()
    before = generators.state_dict()
    seed_everything(mixed(seed, step, rank) & 0xFFFFFFFF)
    fresh = generators.state_dict()
    generators.load_state_dict(before)
    return fresh
