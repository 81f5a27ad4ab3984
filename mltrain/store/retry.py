"""Retries with backoff.

The waits are exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
"""

import errno
import random
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_exponential

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import storage_errors

RETRY_SECONDS = 60.0
_REFUSALS = frozenset({errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})

T = TypeVar("T")


class FullJitter(wait_exponential):
    """Waits between 0 and an exponentially growing number of seconds.

    tenacity's own jitter draws from Python's global random generator, which belongs to the training: an outage would make it
    irreproducible. This class has its own generator.
    """

    _random = random.Random()  # noqa: S311 - not for secrets

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        return self._random.uniform(0, super().__call__(retry_state=retry_state))

    def seconds(self, failures: int) -> float:
        """Return the seconds to wait after consecutive failures."""
        return self._random.uniform(0, min(self.max, self.multiplier * self.exp_base ** min(failures, 30)))


def with_retries(call: Callable[[], T], seconds: float = RETRY_SECONDS) -> T:
    """Call the artifact store, with retries after transient failures.

    Args:
        call: a request to the artifact store.
        seconds: how long to retry.

    Raises:
        StorageError: it refuses, does not support the call, or failed for so many seconds.
    """
    with storage_errors():
        return Retrying(
            stop=stop_after_delay(seconds),
            wait=FullJitter(multiplier=0.2, max=5),
            retry=retry_if_exception(is_transient),
            reraise=True,
        )(call)


def is_transient(error: BaseException) -> bool:
    """Whether an error of a store's client is transient.

    ``KeyboardInterrupt`` and ``SystemExit`` are not: they end the request.
    """
    final = StorageError | DamagedCheckpoint | FileNotFoundError | PermissionError | NotImplementedError
    if not isinstance(error, Exception) or isinstance(error, final):
        return False
    status = http_status(error)
    return status is None or status in (408, 425, 429) or status >= 500


def full_disk(error: BaseException) -> OSError | None:
    """Return the full or read-only disk error behind an error.

    The error itself, its causes and contexts are searched. Returns ``None`` without such an error.
    """
    at: BaseException | None = error
    for _ in range(20):
        if at is None or (isinstance(at, OSError) and at.errno in _REFUSALS):
            break
        at = at.__cause__ or at.__context__
    return at if isinstance(at, OSError) and at.errno in _REFUSALS else None


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or ``None``.

    The causes are searched too: boto3 has the response of a failed upload in the cause of its error, and MLflow has the status
    of a failed listing in an error code.
    """
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    for link in chain:
        response = getattr(link, "response", None)
        status = getattr(response, "status_code", None)
        if status is None and isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    for link in chain:
        if hasattr(link, "get_http_status_code"):
            return int(link.get_http_status_code())
    return None
