"""The sample styles with the defaults: does the style move, does the content stay, and is there a way back?"""

import pytest

from projects.style_transfer.project import Config
from tests.projects.style_transfer.conftest import CONFIG_FILE, built, train


@pytest.mark.slow
@pytest.mark.timeout(2400)  # two to three minutes of one idle CPU
def test_styles_move_and_contents_stay() -> None:
    config = Config.load([CONFIG_FILE], overrides={"device": "cpu"})
    task = built(config)
    assert task.evaluate is not None
    before = task.evaluate()
    train(task, config.epochs)
    after = task.evaluate()
    assert before["val/style_accuracy"] < 0.2
    assert after["val/swd_train"] < 0.5 * after["val/swd_train_identity"]
    assert after["val/swd"] < 0.6 * after["val/swd_identity"]
    assert after["val/style_accuracy"] > 0.7
    assert after["val/ssm"] < 0.7 * after["val/ssm_chance"]
    assert after["val/round_trip"] < 0.05
