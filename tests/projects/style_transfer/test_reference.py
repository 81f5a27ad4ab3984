"""The sample styles with the defaults: does the flow beat what needs no learning, and is there a way back?"""

import pytest

from projects.style_transfer.project import Config
from tests.projects.style_transfer.conftest import CONFIG_FILE, built, train


@pytest.mark.slow
@pytest.mark.timeout(2400)  # four minutes of one idle CPU
def test_the_best_checkpoint_beats_every_baseline() -> None:
    config = Config.load([CONFIG_FILE], overrides={"device": "cpu"})
    task = built(config)
    assert task.evaluate is not None
    before, best = task.evaluate(), None
    for _ in range(config.epochs // config.eval_interval):
        train(task, config.eval_interval)
        scores = task.evaluate()
        if best is None or scores["val/quality"] > best["val/quality"]:
            best = scores
    assert best is not None
    assert best["val/quality"] > before["val/quality"]
    for baseline in ("identity", "colour_matrix", "histogram"):
        assert best["val/quality"] > best[f"val/quality_{baseline}"] + 0.05
        assert best["val/swd"] < 0.95 * best[f"val/swd_{baseline}"]
    assert best["val/ssm"] <= best["val/ssm_colour_matrix"]
    assert best["val/round_trip"] < 0.05
