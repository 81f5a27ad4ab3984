"""The record of an attempt shows how it ended."""

import pytest

from mltrain.ownership.attempts import STATUS_OF, conclude, ending_tags
from tests.support.watched_runs import DEAD, RUN, Client, server, state


@pytest.mark.parametrize("said", [*STATUS_OF, "running"])
def test_what_an_attempt_itself_has_said_comes_first(said: str) -> None:
    client = Client(DEAD)
    client.tags |= ending_tags(1, "failed")
    assert conclude(server(client), RUN, 1, said)
    assert state(client) == ("FAILED", "failed")


def test_an_earlier_attempt_is_not_concluded_over_a_later_one() -> None:
    client = Client(DEAD)
    client.resume()
    assert not conclude(server(client), RUN, 1, "stopped")
    assert state(client) == ("RUNNING", "running")
