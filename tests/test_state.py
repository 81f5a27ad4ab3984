"""The state of a training: saved and restored as one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.errors import StateMismatch, UsageError
from mltrain.restoring.modules import without_lazy
from mltrain.state import Progress, Stateful, TrainState
from tests.support.equality import identical
from tests.support.parts import trained


def test_progress_counts_steps_epochs_and_batches() -> None:
    progress = Progress()
    progress.load_state_dict(Progress(12, 3, 2).state_dict())
    assert progress == Progress(step=12, epoch=3, batch=2)


def test_what_cannot_be_resumed_cannot_join() -> None:
    state = TrainState()
    with pytest.raises(UsageError, match="'loss' is a function"):
        state.add("loss", lambda: 0)  # type: ignore[arg-type]
    state.add("net", nn.Linear(1, 1))
    with pytest.raises(UsageError, match="Two parts of the state are called 'net'"):
        state.add("net", nn.Linear(1, 1))
    assert isinstance(nn.Linear(1, 1), Stateful)


def test_every_part_gets_its_state_back() -> None:
    source, net, _ = trained()
    target, other, part = trained()
    parts = {**source.state_dict(), "part": {"a": 2, "b": torch.ones(2)}}
    target.restore(parts)
    assert identical(dict(other.state_dict()), dict(net.state_dict()))
    assert part.values["a"] == 2


@pytest.mark.parametrize(
    ("spoil", "attribute", "names"),
    [
        (lambda parts: parts.pop("part"), "missing", ("part",)),
        (lambda parts: parts.update(ema={}), "unexpected", ("ema",)),
        (lambda parts: parts["model"].pop("bias"), "missing", ("bias",)),
        (lambda parts: parts["model"].update(scale=torch.ones(1)), "unexpected", ("scale",)),
        (lambda parts: parts["model"].update(weight=torch.ones(9, 9)), "reshaped", ("weight (9, 9) here (3, 2)",)),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_touched(
    spoil: Callable[[dict[str, Any]], Any], attribute: str, names: tuple[str, ...]
) -> None:
    state, net, part = trained()
    parts = {**trained()[0].state_dict(), "part": {"a": 2, "b": torch.ones(2)}}
    spoil(parts)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(StateMismatch) as caught:
        state.restore(parts)
    assert getattr(caught.value, attribute) == names
    assert all(name in str(caught.value) for name in names)
    assert identical(dict(net.state_dict()), before)
    assert part.values["a"] == 1


@pytest.mark.parametrize("wrong", [3, None, [1], {}, {"a": 1}])
def test_a_part_that_does_not_understand_its_state_is_named(wrong: Any) -> None:
    state, *_ = trained()
    with pytest.raises(StateMismatch, match="the part 'part'"):
        state.restore({**state.state_dict(), "part": wrong})


def test_parts_that_may_be_missing_stay_as_they_are_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    state, _, part = trained()
    model_only = {"model": state.state_dict()["model"], "other": {}}
    state.restore(model_only, optional=["part"], ignore_unknown=True)
    assert part.values["a"] == 1
    assert "lacks part" in caplog.text
    assert "Of the checkpoint, other is ignored" in caplog.text


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


def test_a_lazy_module_that_no_forward_has_used_stays_lazy() -> None:
    def state() -> TrainState:
        return TrainState({"model": nn.ModuleList([nn.Linear(1, 1), nn.LazyLinear(2)])})

    saved, resumed = state(), state()
    parts = saved.state_dict()
    assert [key for key, one in parts["model"].items() if isinstance(one, torch.Tensor)] == ["0.weight", "0.bias"]
    resumed.restore(parts)
    assert torch.equal(resumed.state_dict()["model"]["0.weight"], parts["model"]["0.weight"])
    resumed.parts["model"][1](torch.ones(1, 3))  # type: ignore[index]
    assert resumed.state_dict()["model"]["1.weight"].shape == (2, 3)


def test_a_lazy_module_that_the_checkpoint_lacks_is_refused() -> None:
    parts = TrainState({"model": nn.ModuleDict({"a": nn.Linear(1, 1)})}).state_dict()
    for new in (nn.Linear(1, 2), nn.LazyLinear(2)):
        with pytest.raises(StateMismatch) as refused:
            TrainState({"model": nn.ModuleDict({"a": nn.Linear(1, 1), "b": new})}).restore(parts)
        assert refused.value.missing == ("b.bias", "b.weight")
    parts = TrainState({"model": nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.LazyLinear(2)})}).state_dict()
    with pytest.raises(StateMismatch) as refused:
        TrainState({"model": nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 2)})}).restore(parts)
    assert refused.value.missing == ("b.bias", "b.weight")


def test_tensors_of_an_unused_lazy_module_are_no_weights() -> None:
    module = nn.ModuleList([nn.Linear(1, 1), nn.LazyBatchNorm1d()])
    parts = TrainState({"model": module}).state_dict()
    tensors = [key for key, one in parts["model"].items() if isinstance(one, torch.Tensor)]
    assert list(without_lazy(parts["model"])) == tensors == ["0.weight", "0.bias", "1.num_batches_tracked"]
