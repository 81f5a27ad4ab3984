"""Warns of records in a forked process."""

import logging
from functools import cache
from typing import Literal

log = logging.getLogger(__name__)


@cache
def warned_of_fork(writer: int, process: int) -> Literal[True]:
    """Log a warning, once, that a fork's records are lost.

    Args:
        writer: id of the process that writes to the run.
        process: id of the fork.
    """
    log.warning(
        "Process %d was forked from process %d, which writes to the run. Its metrics, tags, parameters, files and "
        "pictures are not recorded. Try: return them to process %d, for example in the batches of a loader, and record "
        "them there.",
        process,
        writer,
        writer,
    )
    return True
