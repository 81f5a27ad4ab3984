"""Checkpoints hold the parts of every rank for a resume."""

import logging
from typing import Any

import pytest
import torch

from mltrain.errors import StateMismatch
from mltrain.rng import Rng
from mltrain.trainer.ranks import fresh_rng, parts_of_rank, with_own_parts


def state(**own: Any) -> dict[str, Any]:
    return {
        "model": {"w": torch.ones(2)},
        "progress": {"step": 4, "epoch": 0, "batch": 4},
        "loader": {"seed": 5},
        **own,
    }


def test_each_rank_gets_its_own_parts_back_and_a_single_process_its_state() -> None:
    ranks = [{"rng": rank, "metrics": {"sum": rank * 10}} for rank in range(3)]
    kept = with_own_parts(state(**ranks[0]), ranks)
    assert (kept["rng"], kept["metrics"]) == (0, {"sum": 0})
    assert kept["progress"]["step"] == 4
    for rank, own in enumerate(ranks):
        got = parts_of_rank(kept, rank, 3)
        assert {name: got[name] for name in own} == own
        assert got["model"] is kept["model"]
    alone = state(rng=1)
    assert parts_of_rank(alone, 0, 1) == alone


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulators_of_another_number_of_ranks_are_refused_with_the_number_to_use(size: int) -> None:
    kept = with_own_parts(state(), [{"rng": rank, "metrics": {"sum": rank}} for rank in range(3)])
    with pytest.raises(StateMismatch, match="Resume with 3 processes"):
        parts_of_rank(kept, 0, size)


def test_without_accumulators_another_number_of_ranks_goes_on_with_random_numbers_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = with_own_parts(state(rng="of rank 0"), [{"rng": rank} for rank in range(2)])
    with caplog.at_level(logging.WARNING):
        assert parts_of_rank(kept, 0, 3)["rng"] == "of rank 0"
    assert "was written by 2 processes, and this training has 3" in caplog.text
    drawn = [parts_of_rank(kept, rank, 3)["rng"]["torch"] for rank in (1, 2)]
    assert not drawn[0].equal(drawn[1])
    assert drawn[0].equal(parts_of_rank(kept, 1, 3)["rng"]["torch"])


def test_fresh_random_numbers_leave_those_of_the_process_alone() -> None:
    before = Rng().state_dict()["torch"]
    kinds = {tuple(fresh_rng(*numbers)["torch"].tolist()) for numbers in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1))}
    assert len(kinds) == 4
    assert Rng().state_dict()["torch"].equal(before)
