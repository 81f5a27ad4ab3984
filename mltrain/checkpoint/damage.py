"""The damaged checkpoints that an attempt comes across."""

import logging

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.ports import Run
from mltrain.errors import DamagedCheckpoint

log = logging.getLogger(__name__)


class Damage:
    """Reports each damaged checkpoint of a run once, in the log and in a tag of the run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._damaged: set[CheckpointId] = set()
        self._cut_short: set[CheckpointId] = set()

    def __bool__(self) -> bool:
        return bool(self._damaged)

    def note(self, identity: CheckpointId, error: DamagedCheckpoint) -> None:
        """Report a damaged checkpoint; a manifest that was cut short before its commit is no damage."""
        if identity in self._damaged or identity in self._cut_short:
            return
        if error.torn and not self._was_announced(identity):
            self._cut_short.add(identity)
            log.warning(
                "Checkpoint %s was never committed: the writing of its manifest was interrupted.", identity.name
            )
            return
        log.warning("Checkpoint %s is damaged and left aside: %s", identity.name, error)
        self._damaged.add(identity)
        self._run.report_damaged(identity.name, str(error))

    def pins(self) -> dict[CheckpointId, str]:
        """Return the damaged checkpoints, pinned: their weights may be intact, and a person may want to look."""
        return dict.fromkeys(self._damaged, "found damaged by the present attempt")

    def _was_announced(self, identity: CheckpointId) -> bool:
        """Whether the run announced the commit of a checkpoint or of a later one."""
        newest = CheckpointId.parse(self._run.announced or "")
        return newest is not None and identity.order <= newest.order
