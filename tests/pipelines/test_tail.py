"""The log of a stage is followed while it runs."""

import pytest

from tests.support.example_pipelines import TinyPipeline
from tests.support.workplace import Workplace


@pytest.fixture
def tiny(workplace: Workplace) -> TinyPipeline:
    return TinyPipeline(workplace)


def test_the_log_of_a_stage_can_be_followed(tiny: TinyPipeline) -> None:
    started = tiny.start("--mode", "resume", "first.sleep=0.1")
    started.until("Training on")
    follower = tiny.start("--follow", "first")
    follower.until("epoch 1 of 3")
    assert started.child.code is None  # it came while the stage was still training
    assert started.wait().code == 0
    followed = follower.wait()
    assert followed.code == 0
    assert "epoch 3 of 3 " in followed.out
    artifact = tiny.artifacts(tiny.run_of("first")) / "stage.log"
    assert "epoch 3 of 3 " in artifact.read_text()
