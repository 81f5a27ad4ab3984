"""What two ranks do together; each check stands in ``tests/distributed/checks.py`` and runs on both."""

import pytest

from tests.support import ranks
from tests.support.workplace import Workplace


@pytest.mark.parametrize(
    "names",
    [("gradients", "passes", "parts", "sharing", "refusing", "unequal", "infinite"), ("leaving",), ("vanishing",)],
    ids=" ".join,
)
def test_on_two_ranks(names: tuple[str, ...], workplace: Workplace) -> None:
    done = ranks.run(workplace, 2, "--module", "tests.distributed.checks", *names)
    assert [rank.code for rank in done] == [0, 0], "\n".join(rank.out + rank.err for rank in done)
