"""The loop: evaluation changes nothing, wrapped models fit, a step is saved once."""

from typing import Any

import torch
from torch import nn

from mltrain.state import TrainState, seed_everything
from mltrain.trainer import Trainer
from tests import tiny
from tests.conftest import same


class Memory:
    """Records and saves into lists: what a tracker and a saver are to the trainer."""

    overtaken = False
    requested = False
    checkpoint_wanted = False

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.saved: list[tuple[int, str]] = []

    def log_metrics(self, values: Any, step: int, *, compared: bool = True) -> None:
        self.points += [(key, step, value) for key, value in values.items() if compared]

    def log_pictures(self, pictures: Any, step: int, epoch: int) -> None:
        assert pictures

    def log_epoch(self, history: Any) -> None:
        assert history.rows

    def save(self, state: Any, **facts: Any) -> None:
        self.saved.append((facts["step"], facts["kind"]))


def trained(**keys: Any) -> tuple[Trainer, Memory]:
    config, memory = tiny.Config(**keys), Memory()
    seed_everything(config.seed)
    task = tiny.build(config)
    trainer = Trainer(task, config, memory, memory, memory)
    seed_everything(config.seed)
    for _ in trainer.steps():
        pass
    return trainer, memory


def test_evaluating_never_changes_the_training() -> None:
    often, rarely = (trained(epochs=5, eval_interval=n)[0].state.state_dict() for n in (1, 5))
    for part in ("model", "optimizer", "scheduler", "rng", "loader", "metrics"):
        assert same(often[part], rarely[part]), part


def test_two_triggers_at_one_step_make_one_checkpoint() -> None:
    _, memory = trained(epochs=2, save_every_steps=3, save_interval=1)
    assert [step for step, _ in memory.saved] == [3, 6, 9, 12]
    assert dict(memory.saved)[6] == "epoch"


def test_an_improvement_is_saved_even_where_no_interval_is_due() -> None:
    trainer, memory = trained(epochs=3, save_interval=100)
    assert trainer.best.step in dict(memory.saved)
    assert max(dict(memory.saved)) == 18  # and the end is


def test_early_stopping_ends_the_training_and_its_counters_are_state() -> None:
    trainer, _ = trained(epochs=50, lr=0.0, early_stopping_patience=2, early_stopping_metric="val/accuracy")
    assert trainer.stopping.exhausted
    assert trainer.progress.epoch < 50
    assert trainer.state.state_dict()["stopping"]["without_improvement"] == 2


def test_a_loss_that_is_not_finite_can_be_skipped() -> None:
    _, memory = trained(epochs=1, nan_at=3, on_nonfinite="skip")
    assert ("step/nonfinite", 3, 1.0) in memory.points


def test_weights_of_a_compiled_model_fit_an_uncompiled_one_and_the_other_way_round() -> None:
    plain = nn.Linear(3, 2)
    compiled = torch.compile(nn.Linear(3, 2))
    assert any(name.startswith("_orig_mod.") for name in compiled.state_dict())
    for source, target in ((plain, compiled), (compiled, plain)):
        state = TrainState()
        state.add("model", target)
        weights = {name: tensor + 1 for name, tensor in source.state_dict().items()}
        state.restore({"model": weights})
        assert [t.tolist() for t in target.state_dict().values()] == [t.tolist() for t in weights.values()]
