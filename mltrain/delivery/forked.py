"""Warns of records in a forked process."""

import logging
import os

log = logging.getLogger(__name__)


class OwnProcess:
    """Tells the process that created it from those forked later."""

    def __init__(self) -> None:
        self._process = self._warned = os.getpid()

    def is_forked(self) -> bool:
        """Whether this process is a fork; the first call in one logs a warning."""
        process = os.getpid()
        if process == self._process:
            return False
        if process != self._warned:
            self._warned = process
            log.warning(
                "Process %d was forked from process %d, which writes to the run. Its metrics, tags, parameters, files and "
                "pictures are not recorded. Try: return them to process %d, for example in the batches of a loader, and record "
                "them there.",
                process,
                self._process,
                self._process,
            )
        return True
