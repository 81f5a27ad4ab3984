"""What two ranks call together; see ``tests/distributed/checks.py``."""

import pytest

from tests.support import ranks
from tests.support.workplace import Workplace


@pytest.mark.parametrize("name", [pytest.param("failing", marks=pytest.mark.slow), "waiting"])
def test_a_function_that_fails_on_one_rank_ends_on_both(name: str, workplace: Workplace) -> None:
    command = ("--module", "tests.distributed.checks", name)
    done = ranks.run(workplace, 2, *command, MLTRAIN_PEER_SECONDS="1800")
    assert [rank.code for rank in done] == [0, 0], "\n".join(rank.out + rank.err for rank in done)
