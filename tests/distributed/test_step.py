"""What the ranks of a step agree on: means, and a request to stop."""

import math

import pytest

from mltrain.data import ResumableLoader
from mltrain.distributed.step import AgreedStop, mean, synchronized
from mltrain.steps import AllowsLateCopy, FollowsMetric, HasDevice, HasEpochMetrics, HasParts
from mltrain.trainer.ports import NeverStop
from tests.support import tiny


def test_a_mean_over_ranks_is_weighted_by_their_parts_of_the_batch() -> None:
    assert mean([(0.25, {"loss": 4.0}), (0.75, {"loss": 8.0})]) == {"loss": 7.0}
    assert mean([(0.0, {"loss": math.nan}), (1.0, {"loss": 8.0})]) == {"loss": 8.0}
    assert math.isnan(mean([(0.5, {"loss": math.nan}), (0.5, {"loss": 8.0})])["loss"])
    assert mean([(0.3, {"norm": 0.1}), (0.3, {"norm": 0.1}), (0.4, {"norm": 0.1})]) == {"norm": 0.1}  # exactly
    assert mean([(0.5, {"loss": 1.0}), (0.5, {"loss": 3.0, "only": 5.0})]) == {"loss": 2.0, "only": 5.0}
    assert mean([(0.0, {"loss": 2.0}), (0.0, {"loss": 4.0})]) == {"loss": 3.0}


class Asked(NeverStop):
    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self.reason is not None

    def request(self, reason: str) -> None:
        self.reason = reason


def test_a_request_counts_only_once_all_ranks_know_of_it() -> None:
    own = Asked()
    stop = AgreedStop(own)
    own.reason = "SIGTERM"
    assert not stop.requested
    assert stop.asked() == ("SIGTERM", False)
    stop.agree([None, "SIGTERM"], [False, True])
    assert stop.requested
    assert stop.checkpoint_wanted


def test_a_request_that_came_to_another_rank_becomes_this_ones() -> None:
    own = Asked()
    stop = AgreedStop(own)
    stop.agree([None, None], [False, False])
    assert not (stop.requested or stop.checkpoint_wanted)
    stop.agree([None, "SIGINT"], [False, False])
    assert stop.requested
    assert own.reason == "SIGINT"


@pytest.mark.parametrize("offers", [HasParts, HasDevice, HasEpochMetrics, AllowsLateCopy, FollowsMetric])
def test_a_step_offers_together_what_it_offers_alone(offers: type) -> None:
    task = tiny.build(tiny.Config())
    loader = ResumableLoader(range(8), 4)
    for inner in (task.step, task.step.inner, lambda batch: {"loss": 1.0}):  # type: ignore[attr-defined]
        step = synchronized(inner, None, loader, None, AgreedStop(NeverStop()))  # type: ignore[arg-type]
        assert isinstance(step, offers) == isinstance(inner, offers)
        assert hasattr(step, "learning_rate") == hasattr(inner, "learning_rate")
