"""What a training is at a step boundary: copied out and put back as one."""

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mltrain.device import make_current
from mltrain.errors import StateMismatch, UnsupportedValue, UsageError
from mltrain.state import HostBuffers, Progress, Rng, Stateful, TrainState, fitted, own_rng, seed_everything, snapshot
from tests.values import identical


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


class Part:
    """A stateful part that holds what it is given, and refuses what it does not understand."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {name: state_dict[name] for name in self.values}


def test_all_generators_go_on_where_they_were() -> None:
    seed_everything(3)
    draws()  # leaves half of a pair of normal deviates in Python's and NumPy's generators
    before = Rng().state_dict()
    expected = [draws() for _ in range(3)]
    Rng().load_state_dict(before)
    assert [draws() for _ in range(3)] == expected


def test_the_state_of_all_generators_survives_the_files() -> None:
    from tests.checkpoint.test_codec import decode, files_of

    seed_everything(4)
    draws()
    files = files_of({"rng": Rng().state_dict()})
    expected = draws()
    Rng().load_state_dict(decode(files)["rng"])
    assert draws() == expected


def test_one_seed_seeds_all_generators() -> None:
    seed_everything(5)
    expected = draws()
    seed_everything(6)
    assert draws() != expected
    seed_everything(5)
    assert draws() == expected


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_block_may_draw_without_the_training_noticing(error: type[Exception] | None) -> None:
    def block() -> list[float]:
        with own_rng(7):
            drawn = draws()
            if error is not None:
                raise error
        return drawn

    seed_everything(1)
    expected = draws()
    seed_everything(1)
    if error is None:
        assert block() == block()
    else:
        with pytest.raises(error):
            block()
    assert draws() == expected


def test_progress_counts_steps_epochs_and_batches() -> None:
    progress = Progress()
    progress.load_state_dict(Progress(12, 3, 2).state_dict())
    assert progress == Progress(step=12, epoch=3, batch=2)


def test_a_snapshot_shares_no_memory_with_the_training() -> None:
    live = {"model": {"w": torch.zeros(4)}, "array": np.zeros(3), "bytes": bytearray(2000)}
    copied = snapshot(live, HostBuffers())
    live["model"]["w"].fill_(1)
    live["array"][:] = 1
    live["bytes"][:] = b"x" * 2000
    assert all(not tensor.any() for tensor in copied.tensors.values())
    assert (copied.weights, copied.parts) == ("model", ("model", "array", "bytes"))


@pytest.mark.parametrize(
    ("state", "weights"),
    [
        ({"model": {"w": torch.ones(1)}}, "model"),
        ({"model_state_dict": OrderedDict(w=torch.ones(1)), "epoch": 1}, "model_state_dict"),
        ({"net": {"w": torch.ones(1)}, "weights": {"w": torch.ones(1)}}, "net"),
        ({"generator": {"w": torch.ones(1)}}, None),
        ({"model": {}, "net": {"w": torch.ones(1)}}, "net"),
        ({"model": 3}, None),
        ({"model": {1: torch.ones(1)}}, None),
        ({"model": torch.ones(1)}, None),
    ],
)
def test_the_part_that_is_the_weights_is_found_by_its_name(state: dict[str, Any], weights: str | None) -> None:
    assert snapshot(state, HostBuffers()).weights == weights


def test_host_memory_is_used_again_from_one_snapshot_to_the_next() -> None:
    buffers = HostBuffers()
    first = buffers.copy({"w": torch.ones(8)})["w"].data_ptr()
    second = buffers.copy({"w": torch.zeros(8)})
    assert second["w"].data_ptr() == first
    assert not second["w"].any()
    assert buffers.copy({"w": torch.zeros(9)})["w"].shape == (9,)
    assert buffers.copy({"w": torch.zeros(9, dtype=torch.float64)})["w"].dtype is torch.float64


class Cuda:
    """A device module of two CUDA devices that are not there; notes what it is asked for."""

    def __init__(self, current: int = 0, devices: int = 2) -> None:
        self.current = current
        self.states = [torch.tensor([device], dtype=torch.uint8) for device in range(devices)]
        self.waited: list[torch.device] = []

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.states)

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: torch.device) -> None:
        self.current = device.index

    def synchronize(self, device: torch.device | None = None) -> None:
        self.waited.append(torch.device("cuda", self.current) if device is None else device)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [state.clone() for state in self.states]

    def set_rng_state(self, state: torch.Tensor, device: int) -> None:
        self.states[device] = state.clone()


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    number = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.number)


class OnSecond(OnCuda):
    number = 1


def test_a_snapshot_waits_for_every_device_that_it_copied_from() -> None:
    cuda = Cuda()
    one, two, here = torch.ones(2).as_subclass(OnCuda), torch.ones(2).as_subclass(OnSecond), torch.ones(2)
    buffers = HostBuffers(cuda, pin=False)
    buffers.copy({"here": here})
    assert cuda.waited == []
    buffers.copy({"two": two, "here": here})
    assert cuda.waited == [torch.device("cuda:1")]
    cuda.waited.clear()
    buffers.copy({"one": one, "two": two, "again": two})
    assert sorted(cuda.waited, key=str) == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_the_configured_device_becomes_the_current_one() -> None:
    cuda = Cuda()
    make_current(torch.device("cuda:1"), cuda)
    assert cuda.current == 1
    for device in ("cpu", "cuda", "mps"):
        make_current(torch.device(device), cuda)
    assert cuda.current == 1


def test_generators_of_all_devices_go_back_and_the_one_that_computes_comes_first() -> None:
    state = Rng(Cuda(current=1)).state_dict()
    same, fewer, more = Cuda(current=1), Cuda(devices=1), Cuda(current=2, devices=3)
    for cuda in (same, fewer, more):
        cuda.states = [torch.tensor([9], dtype=torch.uint8) for _ in cuda.states]
        Rng(cuda).load_state_dict(state)
    assert [int(s) for s in same.states] == [0, 1]
    assert [int(s) for s in fewer.states] == [1]  # it trained on the second device, and goes on with its generator
    assert [int(s) for s in more.states] == [0, 1, 1]


def test_generators_of_checkpoints_without_the_device_go_back_by_number() -> None:
    state = Rng(Cuda()).state_dict()
    del state["cuda_device"]
    cuda = Cuda(current=1)
    Rng(cuda).load_state_dict({**state, "cuda": [torch.tensor([7], dtype=torch.uint8)] * 2})
    assert [int(s) for s in cuda.states] == [7, 7]


def test_a_refused_snapshot_leaves_the_buffers_as_they_were() -> None:
    buffers = HostBuffers()
    kept = snapshot({"w": torch.ones(2)}, buffers)
    with pytest.raises(UnsupportedValue):
        snapshot({"w": torch.zeros(2), "x": object()}, buffers)
    assert kept.tensors["w"].all()


def test_what_cannot_be_resumed_cannot_join() -> None:
    state = TrainState()
    with pytest.raises(UsageError, match="'loss' is a function"):
        state.add("loss", lambda: 0)  # type: ignore[arg-type]
    state.add("net", nn.Linear(1, 1))
    with pytest.raises(UsageError, match="Two parts of the state are called 'net'"):
        state.add("net", nn.Linear(1, 1))
    assert isinstance(nn.Linear(1, 1), Stateful)


def trained() -> tuple[TrainState, nn.Module, Part]:
    net, part, state = nn.Linear(2, 3), Part(a=1, b=torch.zeros(2)), TrainState()
    state.add("model", net)
    state.add("part", part)
    return state, net, part


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


@pytest.mark.parametrize("wrong", [3, None, [1], torch.ones(2), {1: torch.ones(2)}])
def test_weights_that_are_none_are_refused(wrong: Any) -> None:
    state, *_ = trained()
    with pytest.raises(StateMismatch, match="model"):
        state.restore({**state.state_dict(), "model": wrong})


def test_parts_that_may_be_missing_stay_as_they_are_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    state, _, part = trained()
    model_only = {"model": state.state_dict()["model"], "other": {}}
    state.restore(model_only, optional=["part"], ignore_unknown=True)
    assert part.values["a"] == 1
    assert "lacks part" in caplog.text
    assert "other is not used" in caplog.text


def test_weights_fit_a_compiled_module_and_the_other_way_round() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    assert all("_orig_mod" in name for name in compiled.state_dict())
    compiled.load_state_dict(fitted(plain.state_dict(), compiled))
    assert identical(list(compiled.state_dict().values()), list(plain.state_dict().values()))
    back = nn.Sequential(nn.Linear(2, 2))
    back.load_state_dict(fitted(compiled.state_dict(), back))
    assert identical(dict(back.state_dict()), dict(plain.state_dict()))


def test_many_missing_names_are_counted_and_not_all_listed() -> None:
    with pytest.raises(StateMismatch) as caught:
        fitted({}, nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)]))
    assert len(caught.value.missing) == 40
    assert "missing in the checkpoint (40)" in str(caught.value)
    assert "and 28 more" in str(caught.value)
