"""Calls functions on all ranks; one failure ends all."""

import itertools
import time
from collections.abc import Callable, Mapping

from mltrain.distributed.world import World, exit_code_of
from mltrain.errors import PeerLost

_calls = itertools.count()


class Together:
    """A function that all ranks call at the same time.

    It may make collective calls. So a rank on which it fails cannot know whether the others will return, or wait in a collective
    for this rank. It waits for them for ``MLTRAIN_GRACE_SECONDS`` and as long as the last call took, and then closes its
    connections, which ends their wait.

    Args:
        world: the ranks.
        function: returns metrics by name.
        name: of the function, for errors.
    """

    def __init__(self, world: World, function: Callable[[], Mapping[str, float]], name: str) -> None:
        self._world, self._function, self._name = world, function, name
        self._seconds = 0.0

    def __call__(self) -> list[Mapping[str, float]]:
        """Return the metrics of all ranks, by rank.

        Raises:
            PeerLost: the function failed on another rank, or another rank ended.
            Exception: it failed on this rank.
        """
        world, call, began = self._world, next(_calls), time.monotonic()
        values: Mapping[str, float] = {}
        failure = None
        try:
            with world.foreign_collectives():
                values = self._function()
        except PeerLost:
            raise
        except Exception as error:  # noqa: BLE001 - raised below, on every rank
            failure = error
        world.note(f"called/{call}/{world.rank}", "")
        if failure is not None and not world.awaited(
            [f"called/{call}/{rank}" for rank in range(world.size)], world.grace + self._seconds
        ):
            world.fail(failure)
            raise failure
        self._seconds = time.monotonic() - began
        reason = None if failure is None else (f"{type(failure).__name__}: {failure}", exit_code_of(failure))
        answers = world.gather((values, reason))
        if failure is not None:
            raise failure
        for rank, (_, why) in enumerate(answers):
            if why is not None:
                raise PeerLost(f"{self._name} on rank {rank} failed: {why[0]}", rank, why[1])
        return [measured for measured, _ in answers]
