"""The display of a running training, and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        run_id: the run's id.
        exit_code: what the command returns.
        why: the reason, in words.
        newest: the newest checkpoint of this attempt, if any.
        best: the best checkpoint of the run, if any.
        metrics: the last row of the table of epochs.
        delivered: whether the tracking server has everything; if not, ``mltrain sync`` sends the rest from this disk.
        known: whether the tracking server has the run; if not, ``mltrain sync`` creates it.
        trouble: why the tracking server did not take everything.
        only_local: whether the newest checkpoint is on this machine only, until ``mltrain sync`` uploads it.
        lost: number of records that could be neither sent nor buffered on this disk.
    """

    run_id: str
    exit_code: int
    why: str
    newest: Manifest | None = None
    best: Manifest | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    delivered: bool = True
    known: bool = True
    trouble: str | None = None
    only_local: bool = False
    lost: int = 0


class Display:
    """Shows nothing; subclasses show the training as it runs."""

    def resuming(self, run_id: str) -> None:
        """The run to resume is found, and not yet changed."""

    def opened(self, run: "TrackedRun", where: str) -> None:
        """The run is open."""

    def began(self, trainer: "Trainer", origin: str) -> None:
        """Training begins, from ``origin``."""

    def stepped(self, trainer: "Trainer") -> None:
        """A step is done."""

    def waiting(self, what: str) -> None:
        """Training is done; ``what`` is still in progress."""

    def ended(self, outcome: Outcome) -> None:
        """The run is closed."""
