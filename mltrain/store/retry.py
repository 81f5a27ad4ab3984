"""Asking again while what goes wrong may pass, and giving the errors of artifact stores one name.

Between tries: exponential waits with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
"""

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_exponential

from mltrain.errors import DamagedCheckpoint, StorageError

RETRY_SECONDS = 60.0
_REFUSALS = frozenset({errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})

T = TypeVar("T")


class FullJitter(wait_exponential):
    """Waits between 0 and an exponentially growing number of seconds, drawn from random numbers of its own.

    tenacity's own jitter draws from Python's global generator. That belongs to the training, which would not be exact
    any more after an outage.
    """

    _random = random.Random()  # noqa: S311 - nothing secret

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        return self._random.uniform(0, super().__call__(retry_state=retry_state))

    def seconds(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return self._random.uniform(0, min(self.max, self.multiplier * self.exp_base ** min(failures, 30)))


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a store's client raises into :class:`StorageError`."""
    try:
        yield
    except (StorageError, DamagedCheckpoint, FileNotFoundError):
        raise
    except NotImplementedError as error:
        raise StorageError("This kind of artifact store cannot do that.") from error
    except Exception as error:
        raise StorageError(
            f"The artifact store does not answer as it should: {type(error).__name__}: {error}"
        ) from error


def with_retries(call: Callable[[], T]) -> T:
    """Call the artifact store, again and again for a while when it fails in a way that may pass.

    Raises:
        StorageError: it refuses, cannot do that, or did not answer for :data:`RETRY_SECONDS`.
    """
    with storage_errors():
        return Retrying(
            stop=stop_after_delay(RETRY_SECONDS),
            wait=FullJitter(multiplier=0.2, max=5),
            retry=retry_if_exception(is_transient),
            reraise=True,
        )(call)


def is_transient(error: BaseException) -> bool:
    """Whether what a store's client raised may be different the next time."""
    if isinstance(error, StorageError | DamagedCheckpoint | FileNotFoundError | PermissionError | NotImplementedError):
        return False
    status = http_status(error)
    return status is None or status in (408, 425, 429) or status >= 500


def full_disk(error: BaseException) -> OSError | None:
    """Return the refusal of a disk of this machine, full or read-only, that an error is or was caused by."""
    at: BaseException | None = error
    for _ in range(20):
        if at is None or (isinstance(at, OSError) and at.errno in _REFUSALS):
            break
        at = at.__cause__ or at.__context__
    return at if isinstance(at, OSError) and at.errno in _REFUSALS else None


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status in an error or in its causes, or ``None``.

    boto3 hides the answer to an upload in what its error was raised from, and MLflow that to a listing in a code.
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
