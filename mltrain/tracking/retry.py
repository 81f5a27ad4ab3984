"""Waiting between tries: exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015)."""

import random

from tenacity import RetryCallState
from tenacity.wait import wait_exponential


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
