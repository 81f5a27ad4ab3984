"""What a training tells: a display while it runs, an outcome when it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mltrain.checkpoint.manifest import Manifest

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun
    from mltrain.trainer.loop import Trainer

STOPPED, STOPPED_STAGED, NOT_KEPT = 75, 76, 5


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        run_id: of the run.
        exit_code: what the command returns.
        why: in words.
        newest: the newest checkpoint of this attempt, if it made one.
        best: the best checkpoint of the run, if there is one.
        metrics: the last row of the table of epochs.
        delivered: whether the tracking server has everything; else the rest waits on this disk for ``mltrain sync``.
        known: whether the tracking server has the run at all; else ``mltrain sync`` creates it.
        trouble: why the tracking server did not take everything.
        only_local: whether the newest checkpoint is on this machine only, and ``mltrain sync`` is needed to send it.
        lost: how many records neither the tracking server nor this disk has taken.
    """

    run_id: str
    exit_code: int
    why: str
    newest: Manifest | None
    best: Manifest | None
    metrics: Mapping[str, float]
    delivered: bool = True
    known: bool = True
    trouble: str | None = None
    only_local: bool = False
    lost: int = 0


class Display:
    """What a training shows while it runs: this one shows nothing, and others show more."""

    def resuming(self, run_id: str) -> None:
        """The run that is resumed is known, and nothing in it was changed yet."""

    def opened(self, run: "TrackedRun", where: str) -> None:
        """The run is known."""

    def began(self, trainer: "Trainer", origin: str) -> None:
        """Training begins, from ``origin``."""

    def stepped(self, trainer: "Trainer") -> None:
        """A step is done."""

    def waiting(self, what: str) -> None:
        """Training is over and something has to be waited for."""

    def ended(self, outcome: Outcome) -> None:
        """The run is closed."""
