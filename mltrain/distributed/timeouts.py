"""The configured timeout of waits for other ranks."""

import os

from mltrain.errors import UsageError


def peer_seconds() -> float:
    """Return ``MLTRAIN_PEER_SECONDS``, default 1800.

    Raises:
        UsageError: it is no number of seconds.
    """
    given = os.environ.get("MLTRAIN_PEER_SECONDS") or "1800"
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 10**7:
        raise UsageError(
            f"MLTRAIN_PEER_SECONDS is invalid. Expected seconds, 1 to 1e7, got {given!r:.40}. Try: MLTRAIN_PEER_SECONDS=1800"
        )
    return seconds
