"""The loop: evaluation changes nothing, wrapped models fit, a step is saved once."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mltrain.errors import NonFiniteLoss, StorageError, UnsupportedValue, UsageError
from mltrain.rng import seed_everything
from mltrain.state import TrainState
from mltrain.steps import Supervised, floats
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer import Task, Trainer
from tests.support import tiny
from tests.support.equality import same


def trained(build: Any = tiny.build, **keys: Any) -> tuple[Trainer, MemoryTracker, MemorySaver]:
    config, tracker, saver = tiny.Config(**keys), MemoryTracker(), MemorySaver()
    seed_everything(config.seed)
    trainer = Trainer(build(config), config, tracker, saver, StopAt())
    seed_everything(config.seed)
    for _ in trainer.steps():
        pass
    return trainer, tracker, saver


def steps_saved(saver: MemorySaver) -> dict[int, str]:
    return {kept.step: kept.kind for kept in saver.checkpoints}


def test_evaluating_never_changes_the_training() -> None:
    often, rarely = (trained(epochs=5, eval_interval=n)[0].state.state_dict() for n in (1, 5))
    for part in ("model", "optimizer", "scheduler", "rng", "loader", "metrics"):
        assert same(often[part], rarely[part]), part


def test_two_triggers_at_one_step_make_one_checkpoint() -> None:
    _, _, saver = trained(epochs=2, save_every_steps=3, save_interval=1)
    assert [kept.step for kept in saver.checkpoints] == [3, 6, 9, 12]
    assert steps_saved(saver)[6] == "epoch"


def test_an_improvement_is_saved_even_where_no_interval_is_due() -> None:
    trainer, _, saver = trained(epochs=3, save_interval=100)
    assert trainer.best.step in steps_saved(saver)
    assert max(steps_saved(saver)) == 18  # and the end is


def test_early_stopping_ends_the_training_and_its_counters_are_state() -> None:
    trainer, _, _ = trained(epochs=50, lr=0.0, early_stopping_patience=2, early_stopping_metric="val/accuracy")
    assert trainer.stopping.exhausted
    assert trainer.progress.epoch < 50
    assert trainer.state.state_dict()["stopping"]["without_improvement"] == 2


def test_a_loss_that_is_not_finite_can_be_skipped() -> None:
    _, tracker, _ = trained(epochs=1, nan_at=3, on_nonfinite="skip")
    assert tracker.points["step/nonfinite"] == {3: 1.0}


class Poisoned(tiny.Faulty):
    """A step whose own counter is no part, so that it is not put back with the rest; ``nan_at`` spoils the weights."""

    def parts(self) -> Any:
        return self.inner.parts()

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        if self.done == self.config.nan_at:
            with torch.no_grad():
                self.inner.model[0].weight.fill_(float("nan"))  # type: ignore[index,operator]
        return result


def poisoned(config: tiny.Config) -> Task:
    task = tiny.build(config)
    return Task(Poisoned(task.step.inner, config), task.loader, task.evaluate)  # type: ignore[attr-defined]


def test_a_loss_that_is_not_finite_can_roll_back_what_is_trained_while_the_data_go_on() -> None:
    trainer, tracker, saver = trained(poisoned, epochs=3, nan_at=9, on_nonfinite="rollback")
    assert all(tensor.isfinite().all() for tensor in trainer.state.state_dict()["model"].values())
    assert tracker.points["step/nonfinite"] == {9: 1.0}
    assert sorted(tracker.points["step/loss"]) == [step for step in range(1, 19) if step != 9]  # each step once
    assert trainer.progress.step == 18
    assert max(steps_saved(saver)) == 18


def test_a_training_that_going_back_does_not_help_gives_up_with_what_it_has() -> None:
    def hopeless(config: tiny.Config) -> Task:
        task = poisoned(config)
        step = task.step

        class Hopeless(Poisoned):
            def __call__(self, batch: Any) -> Any:
                result = super().__call__(batch)
                return {"loss": torch.tensor(float("inf"))} if self.done >= 9 else result

        return Task(Hopeless(step.inner, config), task.loader)  # type: ignore[attr-defined]

    with pytest.raises(NonFiniteLoss, match=r"step 12 .*3 times did not help"):
        trained(hopeless, epochs=3, on_nonfinite="rollback")


def test_without_a_checkpoint_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(NonFiniteLoss, match="step 3"):
        trained(epochs=1, nan_at=3, on_nonfinite="rollback")


def test_a_loader_that_cannot_say_where_it_is_is_refused_with_what_to_take() -> None:
    task = tiny.build(tiny.Config())
    with pytest.raises(UsageError, match=r"A DataLoader cannot say where it is.*ResumableLoader"):
        Task(task.step, DataLoader([1, 2, 3]))  # type: ignore[arg-type]


def test_a_loader_that_gives_nothing_is_said() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    def build(config: tiny.Config) -> Task:
        return Task(tiny.build(config).step, Empty())

    with pytest.raises(UsageError, match="no batch"):
        trained(build)


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


class Failing:
    """Raises at a call, as code does that first runs at the end of an epoch."""

    def __init__(self, inner: Any, at: int) -> None:
        self.inner, self.at, self.calls = inner, at, 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("a mistake in the project")
        return self.inner()


def resumed(saver: MemorySaver, tracker: MemoryTracker, build: Any = tiny.build, **keys: Any) -> Trainer:
    config = tiny.Config(**keys)
    trainer = Trainer(build(config), config, tracker, saver, StopAt())
    seed_everything(999)
    trainer.restore(saver.checkpoints[-1].parts())
    for _ in trainer.steps():
        pass
    return trainer


def without_length(config: tiny.Config) -> Task:
    task = tiny.build(config)

    class Streamed:
        def __iter__(self) -> Iterator[Any]:
            return iter(task.loader)

        def state_dict(self) -> Any:
            return task.loader.state_dict()

        def load_state_dict(self, state: Any) -> None:
            task.loader.load_state_dict(state)

    return replace(task, loader=Streamed())


@pytest.mark.parametrize("build", [tiny.build, without_length])
@pytest.mark.parametrize("where", ["evaluate", "epoch_metrics"])
def test_an_evaluation_that_raises_costs_no_step_and_is_done_once(build: Any, where: str) -> None:
    whole, expected, _ = trained(build, epochs=3)
    saver, tracker = MemorySaver(), MemoryTracker()

    def failing(config: tiny.Config) -> Task:
        task = build(config)
        if where == "evaluate":
            return replace(task, evaluate=Failing(task.evaluate, 2))
        task.step.epoch_metrics = Failing(task.step.epoch_metrics, 2)
        return task

    config = tiny.Config(epochs=3)
    seed_everything(config.seed)
    trainer = Trainer(failing(config), config, tracker, saver, StopAt())
    seed_everything(config.seed)
    with pytest.raises(RuntimeError, match="a mistake in the project"):
        for _ in trainer.steps():
            pass
    assert [(kept.step, kept.kind) for kept in saver.checkpoints] == [(6, "epoch"), (12, "step")]
    assert list(tracker.points["val/loss"]) == [6]
    assert list(tracker.points["train/accuracy"]) == [6]
    tracker.log_metrics = Once(tracker)  # type: ignore[method-assign]
    again = resumed(saver, tracker, build, epochs=3)
    assert same(again.state.state_dict(), whole.state.state_dict())
    assert tracker.points == expected.points
    assert (12, "epoch") in [(kept.step, kept.kind) for kept in saver.checkpoints]


class Once:
    """Logs metrics, and fails for a point that is there already."""

    def __init__(self, tracker: MemoryTracker) -> None:
        self.tracker, self.log_metrics = tracker, tracker.log_metrics

    def __call__(self, values: Any, step: int, *, compared: bool = True) -> None:
        assert not [key for key in values if compared and step in self.tracker.points.get(key, {})]
        self.log_metrics(values, step, compared=compared)


def test_an_evaluation_that_leaves_other_weights_behind_is_not_saved(caplog: pytest.LogCaptureFixture) -> None:
    def swapping(config: tiny.Config) -> Task:
        task = tiny.build(config)

        def evaluate() -> Any:
            with torch.no_grad():
                task.step.inner.model[0].weight.zero_()  # type: ignore[attr-defined]
            raise RuntimeError("a mistake while the weights are averaged ones")

        return replace(task, evaluate=evaluate)

    saver = MemorySaver()
    trainer = Trainer(swapping(tiny.Config()), tiny.Config(), MemoryTracker(), saver, StopAt())
    with pytest.raises(RuntimeError, match="averaged"):
        list(trainer.steps())
    assert saver.checkpoints == []
    assert "changed the model's parameters" in caplog.text


def test_pictures_that_cannot_be_made_are_a_warning_after_the_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    saver = MemorySaver()
    saved_before: list[int] = []

    def images() -> Any:
        saved_before.append(len(saver.checkpoints))
        raise KeyError("sample")

    config = tiny.Config(epochs=2)
    trainer = Trainer(replace(tiny.build(config), images=images), config, MemoryTracker(), saver, StopAt())
    for _ in trainer.steps():
        pass
    assert trainer.progress.epoch == 2
    assert saved_before == [1, 2]
    assert "pictures of epoch 2 are missing: KeyError" in caplog.text


def test_pictures_are_made_again_when_they_may_be_missing() -> None:
    _, tracker, saver = trained(epochs=2)
    tracker.pictures.clear()
    config = tiny.Config(epochs=2)
    again = Trainer(tiny.build(config), config, tracker, saver, StopAt())
    again.restore(saver.checkpoints[-1].parts())
    before = again.state.state_dict()
    again.show()
    assert list(tracker.pictures) == [("val/weights", 12)]
    assert same(again.state.state_dict(), before)
    in_the_middle = Trainer(tiny.build(config), config, MemoryTracker(), saver, StopAt())
    next(in_the_middle.steps())
    in_the_middle.show()
    assert in_the_middle.progress.step == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"val/loss": [0.5]}, r"evaluate\(\) returned a list, \[0.5\], as the metric 'val/loss'"),
        ({"val/loss": None}, "a NoneType"),
        ({"val/loss": "0.5"}, "a str"),
        ({"val/loss": 1j}, "a complex"),
        ({"val/loss": np.complex64(1)}, "complex64"),
        ({"val/loss": torch.zeros(3)}, r"a Tensor of shape \(3,\)"),
        ({"val/loss": {"a": 1.0}}, "a dict"),
        ({"val/loss": 10**400}, "an int|a int"),
        ({1: 0.5}, "a metric called 1"),
        ({"": 0.5}, "a metric called ''"),
        ([0.5], r"evaluate\(\) returned a list"),
        (None, r"evaluate\(\) returned a NoneType"),
    ],
)
def test_what_is_not_a_number_by_name_is_refused_with_what_came(value: Any, said: str) -> None:
    saver = MemorySaver()
    task = replace(tiny.build(tiny.Config()), evaluate=lambda: value)
    with pytest.raises(UsageError, match=said):
        list(Trainer(task, tiny.Config(), MemoryTracker(), saver, StopAt()).steps())
    assert [kept.step for kept in saver.checkpoints] == [6]


def test_numbers_of_every_library_are_metrics() -> None:
    values = {"a": np.float32(0.5), "b": torch.tensor([0.5]), "c": np.array([0.5]), "d": True, "e": 1, "f": np.int64(2)}
    assert floats(values, "it") == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0, "e": 1.0, "f": 2.0}
    assert floats({"a\udc80": 1}, "it") == {"a\\udc80": 1.0}


class NotFinite(tiny.Faulty):
    """A step that trains nothing, and returns a NaN, at the steps that are given."""

    name = "grad_norm"
    at: frozenset[int] = frozenset()
    counts = True

    def parts(self) -> Any:
        return super().parts() if self.counts else self.inner.parts()

    def __call__(self, batch: Any) -> Any:
        self.done += 1
        if self.done in self.at:
            return {"loss": 1.0, self.name: float("nan"), "draw": 100.0}
        return self.inner(batch)


def not_finite(*at: int, name: str = "grad_norm", counts: bool = True) -> Any:
    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        step = NotFinite(task.step.inner, config)  # type: ignore[attr-defined]
        step.at, step.name, step.counts = frozenset(at), name, counts
        return replace(task, step=step)

    return build


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_gradient_that_is_not_finite_counts_like_a_loss(name: str) -> None:
    with pytest.raises(NonFiniteLoss, match=rf"step 3 .*{name} is nan.*No checkpoint holds a trained state"):
        trained(not_finite(3, name=name), epochs=1)
    with pytest.raises(NonFiniteLoss, match=rf"step 9 .*{name} is nan.*The checkpoint of step 6 is intact"):
        trained(not_finite(9, name=name), epochs=2)
    trainer, tracker, _ = trained(not_finite(3, 4, name=name), epochs=1, on_nonfinite="skip")
    assert tracker.points["step/nonfinite"] == {3: 1.0, 4: 1.0}
    assert "train/draw" not in tracker.points, "a step that is left out is no part of the means"
    assert trainer.history.rows[0]["step"] == 6


def test_skipping_gives_up_after_so_many_in_a_row_and_counts_on_after_a_resume() -> None:
    build = not_finite(*range(4, 13))
    trained(not_finite(*range(2, 18, 2)), epochs=3, on_nonfinite="skip", nonfinite_limit=2)
    with pytest.raises(NonFiniteLoss, match=r"step 9 .*for the 6th time in a row"):
        trained(build, epochs=3, on_nonfinite="skip", nonfinite_limit=6)
    saver, config = MemorySaver(), tiny.Config(epochs=3, on_nonfinite="skip", nonfinite_limit=6, save_every_steps=1)
    trainer = Trainer(build(config), config, MemoryTracker(), saver, StopAt())
    for progress in trainer.steps():
        if progress.step == 7:
            break
    with pytest.raises(NonFiniteLoss, match=r"step 9 .*for the 6th time in a row"):
        resumed(saver, MemoryTracker(), build, epochs=3, on_nonfinite="skip", nonfinite_limit=6)


def test_an_epoch_in_which_no_step_trained_ends_the_training() -> None:
    with pytest.raises(NonFiniteLoss, match="None of the 6 steps of epoch 2"):
        trained(not_finite(*range(7, 13)), epochs=3, on_nonfinite="skip")


def test_a_training_in_which_nothing_was_trained_is_not_done() -> None:
    keys: dict[str, Any] = {"epochs": 3, "items": 8, "on_nonfinite": "skip"}  # epochs of one step
    trained(not_finite(1, 3), **keys)
    tracker, saver, config = MemoryTracker(), MemorySaver(), tiny.Config(**keys)
    build = not_finite(1, 2, 3)
    with pytest.raises(NonFiniteLoss, match="None of 3 steps had a finite loss and gradient"):
        list(Trainer(build(config), config, tracker, saver, StopAt()).steps())
    with pytest.raises(NonFiniteLoss, match="None of 3 steps"):
        resumed(saver, tracker, build, **keys)


@pytest.mark.parametrize("save_every_steps", [0, 1])
def test_going_back_gives_up_although_each_state_is_saved(save_every_steps: int) -> None:
    build = not_finite(*range(9, 100), counts=False)
    with pytest.raises(NonFiniteLoss, match=r"step 12 .*3 times did not help.*The checkpoint of step \d+ is intact"):
        trained(build, epochs=9, on_nonfinite="rollback", save_every_steps=save_every_steps)


class Refusing(MemorySaver):
    """A saver that finds out in the background that weights are not finite, as a checkpoint manager does."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None

    def save(self, state: Any, **more: Any) -> None:
        finite = all(tensor.isfinite().all() for tensor in state["model"].values())
        self.failure = None if finite else NonFiniteLoss("the weights are not finite")
        if finite:
            super().save(state, **more)


def corrupted(at: int) -> Any:
    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        inner, calls = task.step, []

        class OwnStep:
            def parts(self) -> Any:
                return inner.parts()  # type: ignore[attr-defined]

            def __call__(self, batch: Any) -> Any:
                inner(batch)
                calls.append(0)
                if len(calls) == at:
                    with torch.no_grad():
                        inner.inner.model[4].bias.fill_(float("nan"))  # type: ignore[attr-defined]
                return {"loss": 1.0}

        return Task(OwnStep(), task.loader)

    return build


@pytest.mark.parametrize("mode", ["abort", "skip"])
def test_weights_that_a_step_corrupts_while_its_loss_is_finite_end_the_training(mode: Any) -> None:
    config = tiny.Config(epochs=3, on_nonfinite=mode)
    trainer = Trainer(corrupted(12)(config), config, MemoryTracker(), saver := Refusing(), StopAt())
    with pytest.raises(NonFiniteLoss, match="weights are not finite"):
        list(trainer.steps())
    assert (trainer.progress.step, steps_saved(saver)) == (13, {6: "epoch"})


def test_weights_that_a_step_corrupts_are_rolled_back() -> None:
    config = tiny.Config(epochs=3, on_nonfinite="rollback")
    trainer = Trainer(corrupted(12)(config), config, tracker := MemoryTracker(), saver := Refusing(), StopAt())
    list(trainer.steps())
    assert tracker.points["step/nonfinite"] == {13: 1.0}
    assert steps_saved(saver) == {6: "epoch", 18: "epoch"}


def without(name: str, epochs: Any) -> Any:
    """A project whose evaluation measures a metric in some epochs only."""

    def build(config: tiny.Config) -> Task:
        task, count = tiny.build(config), []

        def evaluate() -> Any:
            count.append(0)
            measured = dict(task.evaluate())  # type: ignore[misc]
            return {key: value for key, value in measured.items() if key != name or len(count) in epochs}

        return replace(task, evaluate=evaluate)

    return build


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"best_metric": "val/los"}, "best_metric=val/los was not measured at epoch 1. Did you mean 'val/loss'?"),
        ({"best_metric": "val/los", "eval_interval": 2}, "best_metric=val/los was not measured at epoch 2."),
        (
            {"early_stopping_metric": "val/acuracy", "early_stopping_patience": 1},
            "early_stopping_metric=val/acuracy was not measured at epoch 1. Did you mean 'val/accuracy'?",
        ),
        ({"retention": "Latest(1) | (Best(2, 'val/iou') & Best(1))"}, "retention=val/iou was not measured at epoch 1."),
    ],
)
def test_a_metric_that_nothing_measures_is_named_with_the_nearest(
    keys: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _, saver = trained(epochs=4, **keys)
    assert caplog.text.count(said) == 1
    assert caplog.text.count("No evaluation measured") == 1
    caplog.clear()
    trainer = Trainer(tiny.build(trainer.config), trainer.config, MemoryTracker(), saver, StopAt())
    trainer.restore(saver.checkpoints[1].parts())
    list(trainer.steps())
    assert caplog.text.count(" was not measured at epoch ") == 1, "a resume names it again"


def test_metrics_that_are_measured_now_and_then_are_no_news_and_the_default_needs_no_evaluation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained(epochs=2)
    trained(lambda config: replace(tiny.build(config), evaluate=None), epochs=2)
    trained(without("val/loss", {1, 3}), epochs=4)
    assert "measured" not in caplog.text
    trainer, _, _ = trained(without("val/loss", {3}), epochs=4)
    assert caplog.text.count("was not measured at epoch 1") == 1
    assert caplog.text.count("measured") == 2, "once it has come, it is not missed at the end"
    assert trainer.best.epoch == 3


def on_a_plateau(config: tiny.Config, **options: Any) -> Task:
    task = tiny.build(config)
    inner = task.step.inner  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        inner.optimizer, factor=0.5, patience=0, threshold=10, threshold_mode="abs", **options
    )
    return replace(task, step=Supervised(inner.model, inner.loss, inner.optimizer, scheduler=schedule))


@pytest.mark.parametrize("eval_interval", [1, 2])
def test_a_schedule_on_a_plateau_follows_evaluations_and_resumes_exactly(eval_interval: int) -> None:
    keys = {"epochs": 6, "eval_interval": eval_interval}
    whole, tracker, saver = trained(on_a_plateau, **keys)
    # The rate that an epoch was trained with is that of the evaluations before it.
    rates = [tracker.points["learning_rate"][step] for step in range(6, 37, 6)]
    evaluations = [epoch // eval_interval for epoch in range(6)]
    assert rates == [1e-2 * 0.5 ** max(0, done - 1) for done in evaluations]
    part = MemorySaver()
    part.checkpoints = saver.checkpoints[:3]
    assert same(resumed(part, MemoryTracker(), on_a_plateau, **keys).state.state_dict(), whole.state.state_dict())


def test_a_schedule_on_a_plateau_that_cannot_follow_its_metric_is_refused() -> None:
    for build, keys, said in (
        (on_a_plateau, {"best_mode": "max"}, r"Expected the mode of best_mode, 'max'"),
        (lambda config: on_a_plateau(config, mode="max"), {}, r"ReduceLROnPlateau\(mode='max'\)"),
        (lambda config: replace(on_a_plateau(config), evaluate=None), {}, r"no evaluate\(\) that measures it"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(build, **keys)
    trained(lambda config: replace(on_a_plateau(config), evaluate=None), epochs=1, best_metric="train/loss")


def test_a_part_that_no_checkpoint_can_hold_is_refused_before_the_first_step() -> None:
    class Holding:
        def state_dict(self) -> Any:
            return {"call": print}

        def load_state_dict(self, state: Any) -> None:
            raise NotImplementedError

    config = tiny.Config()
    trainer = Trainer(
        replace(tiny.build(config), state={"mine": Holding()}), config, MemoryTracker(), MemorySaver(), StopAt()
    )
    with pytest.raises(UnsupportedValue, match="mine"):
        next(trainer.steps())
    assert trainer.progress.step == 0


def test_a_learning_rate_that_cannot_be_read_costs_no_epoch() -> None:
    class Odd(tiny.Faulty):
        @property
        def learning_rate(self) -> Any:
            return [0.1, 0.2]

    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        return replace(task, step=Odd(task.step.inner, config))  # type: ignore[attr-defined]

    saver, config = MemorySaver(), tiny.Config(epochs=1)
    with pytest.raises(UsageError, match="as the metric 'learning_rate'"):
        list(Trainer(build(config), config, MemoryTracker(), saver, StopAt()).steps())
    assert steps_saved(saver) == {6: "step"}
    assert resumed(saver, MemoryTracker(), epochs=1).progress.epoch == 1


def test_a_checkpoint_that_cannot_be_read_is_not_called_intact() -> None:
    class Away(MemorySaver):
        def peek(self) -> Any:
            raise StorageError("the artifact store does not answer")

    config = tiny.Config(epochs=3)
    trainer = Trainer(not_finite(9)(config), config, MemoryTracker(), Away(), StopAt())
    with pytest.raises(NonFiniteLoss, match="The last checkpoint cannot be read now"):
        list(trainer.steps())
