"""What a training is at a step boundary: copied out and put back as one."""

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.device import make_current
from mltrain.errors import StateMismatch, UnsupportedValue, UsageError
from mltrain.rng import Rng, own_rng, seed_everything
from mltrain.state import Progress, Stateful, TrainState, fitted, is_lazy
from tests.support.values import identical


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


class Refuses(Part):
    """A part that takes over half of its state and then raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(a=1, b=torch.zeros(2))
        self.error: BaseException | None = error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values["a"] = state_dict["a"]
        self.values["b"].fill_(7)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.values = dict(state_dict)


def stepped(state: TrainState) -> dict[str, Any]:
    """Do a step with the parts called ``model`` and ``optimizer``, and return the state after it as a copy."""
    net, optimizer = state.parts["model"], state.parts["optimizer"]
    assert isinstance(net, nn.Module)
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.zero_grad()
    net(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    return copy.deepcopy(state.state_dict())


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("no"), StateMismatch),
        (ZeroDivisionError(), StateMismatch),
        (AssertionError(), StateMismatch),
        (UsageError("so it is"), UsageError),
        (OSError("disk"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_a_part_that_refuses_leaves_all_parts_as_they_were(error: BaseException, raised: type[BaseException]) -> None:
    def fresh(last: Any) -> TrainState:
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return TrainState({"model": net, "optimizer": optimizer, "scheduler": schedule, "rng": Rng(), "last": last})

    parts = stepped(fresh(Part(a=5, b=torch.ones(2))))
    target = fresh(Refuses(error))
    stepped(target)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(raised):
        target.restore(parts)
    assert identical(target.state_dict(), before)
    net = target.parts["model"]
    assert isinstance(net, nn.Module)
    target.restore(parts)  # and they can be restored afterwards
    assert identical(target.state_dict()["model"], parts["model"])


def test_an_optimizer_that_refuses_leaves_the_model_as_it_was() -> None:
    def fresh(width: int) -> TrainState:
        net = nn.Linear(2, 3)
        return TrainState({"model": net, "optimizer": torch.optim.SGD([net.weight, net.bias][:width], momentum=0.9)})

    parts, target = stepped(fresh(2)), fresh(1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StateMismatch, match=r"model\.bias"):
        target.restore(parts)
    assert identical(target.state_dict(), before)


def test_a_lazy_module_that_has_to_go_back_is_lazy_again() -> None:
    def fresh(last: Any) -> TrainState:
        net = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
        return TrainState({"last": last, "optimizer": torch.optim.AdamW(net.parameters()), "model": net})

    source = fresh(Part(a=2, b=torch.ones(2)))
    parts = stepped(source)
    target = fresh(Refuses(RuntimeError("no")))
    with pytest.raises(StateMismatch):
        target.restore(parts)
    net, optimizer = target.parts["model"], target.parts["optimizer"]
    assert isinstance(net, nn.Sequential)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert all(is_lazy(parameter) for parameter in net.parameters())
    assert not optimizer.state
    target.restore(parts)
    assert identical(target.state_dict(), parts)
    seed_everything(1)
    expected = stepped(source)
    seed_everything(1)
    assert identical(stepped(target), expected)


def test_a_lazy_module_is_not_touched_by_the_question_whether_weights_fit() -> None:
    net, lazy = nn.Linear(2, 3), nn.LazyLinear(3)
    fitted(net.state_dict(), lazy)
    assert is_lazy(lazy.weight)
    assert is_lazy(lazy.bias)
    with pytest.raises(StateMismatch) as caught:
        fitted({"weight": torch.ones(3, 2)}, lazy)
    assert caught.value.missing == ("bias",)
    assert is_lazy(lazy.weight)


class Grows(nn.Module):
    """Has a buffer that takes the shape of what it is given, as torch's observers have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.seen.resize_(state_dict[f"{prefix}seen"].shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Renames(nn.Module):
    """Takes weights of an earlier version of itself, in which the layer was called ``old``."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 3)
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in list(state_dict):
            if key.startswith(f"{prefix}old."):
                state_dict[key.replace(f"{prefix}old.", f"{prefix}new.")] = state_dict.pop(key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.new(x)


class Lenient(nn.Linear):
    """Leaves out what it has not, whatever it is asked."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class Remembers(nn.Linear):
    """Has more to remember than tensors."""

    seen = 0

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


WEIGHT, BIAS = torch.ones(3, 2), torch.ones(3)
TAKEN: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "grows": (Grows, {"seen": torch.ones(5)}),
    "renames": (Renames, {"old.weight": WEIGHT, "old.bias": BIAS}),
    "lenient": (lambda: Lenient(2, 3), {"weight": WEIGHT, "bias": BIAS, "more": BIAS}),
    "remembers": (lambda: Remembers(2, 3), {"weight": WEIGHT, "bias": BIAS, "_extra_state": {"seen": 3}}),
    "lazy": (lambda: nn.LazyLinear(3), {"weight": WEIGHT, "bias": BIAS}),
}


@pytest.mark.parametrize(
    ("kind", "wrapped"),
    [
        (kind, wrapped)
        for kind in TAKEN
        for wrapped in ("plain", "inside", "compiled", "data parallel")
        if kind != "lenient" or wrapped not in ("inside", "compiled")  # torch asks the outermost module only
    ],
)
def test_what_torch_takes_is_taken(kind: str, wrapped: str) -> None:
    make, weights = TAKEN[kind]
    alone, net = make(), make()
    alone.load_state_dict(weights)
    if wrapped == "inside":
        net, weights = nn.ModuleDict({"net": net}), {f"net.{key}": value for key, value in weights.items()}
    if wrapped == "compiled":
        net = torch.compile(net, backend="eager")  # type: ignore[assignment]
    if wrapped == "data parallel":
        weights = {f"module.{key}": value for key, value in weights.items()}
    before = copy.deepcopy(dict(net.state_dict())) if kind != "lazy" else {}
    fitted(weights, net)
    if kind != "lazy":
        assert identical(dict(net.state_dict()), before)
    TrainState({"model": net}).restore({"model": weights})
    assert identical(list(net.state_dict().values()), list(alone.state_dict().values()))


def test_what_a_module_refuses_leaves_it_as_it_was() -> None:
    net = nn.Sequential(OrderedDict(remembers=Remembers(2, 3), grows=Grows()))
    before = copy.deepcopy(dict(net.state_dict()))
    wrong = {**copy.deepcopy(before), "remembers._extra_state": {"seen": 3}, "grows.seen": torch.ones(4), "more": BIAS}
    with pytest.raises(StateMismatch) as caught:
        fitted(wrong, net)
    assert caught.value.unexpected == ("more",)
    assert identical(dict(net.state_dict()), before)


def test_weights_go_into_a_data_parallel_module_and_out_of_it() -> None:
    plain, wrapped = nn.Linear(2, 3), nn.DataParallel(nn.Linear(2, 3))
    TrainState({"model": wrapped}).restore({"model": plain.state_dict()})
    assert identical(list(wrapped.state_dict().values()), list(plain.state_dict().values()))
    other = nn.Linear(2, 3)
    TrainState({"model": other}).restore({"model": wrapped.state_dict()})
    assert identical(dict(other.state_dict()), dict(plain.state_dict()))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def two(groups: Callable[[Two], Any], *, wrap: Callable[[Two], nn.Module] = lambda net: net) -> TrainState:
    torch.manual_seed(0)
    net = Two()
    optimizer = torch.optim.AdamW(groups(net), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.9**step] * len(optimizer.param_groups))
    return TrainState({"model": wrap(net), "optimizer": optimizer, "scheduler": schedule})


def in_two(net: Two) -> list[dict[str, Any]]:
    return [
        {"params": list(net.encoder.parameters()), "lr": 1e-2},
        {"params": list(net.decoder.parameters()), "lr": 1e-4},
    ]


def swapped(net: Two) -> list[dict[str, Any]]:
    return in_two(net)[::-1]


def turned(net: Two) -> list[dict[str, Any]]:
    return [{**group, "params": group["params"][::-1]} for group in in_two(net)]


def moments(state: TrainState) -> dict[str, Any]:
    """Moments and rate of every parameter by name."""
    optimizer, net = state.parts["optimizer"], state.parts["model"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(net, nn.Module)
    names = {id(parameter): name.replace("_orig_mod.", "") for name, parameter in net.named_parameters()}
    found = {
        names[id(one)]: {"lr": group["lr"], "initial_lr": group["initial_lr"], **optimizer.state[one]}
        for group in optimizer.param_groups
        for one in group["params"]
    }
    return dict(sorted(found.items()))


@pytest.mark.parametrize("groups", [swapped, turned, lambda net: turned(net)[::-1]])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_state_of_an_optimizer_follows_the_names_of_its_parameters(
    groups: Any, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = two(in_two)
    parts = stepped(source)
    wrap = (lambda net: torch.compile(net, backend="eager")) if compiled else (lambda net: net)
    target = two(groups, wrap=wrap)
    target.restore(parts)
    assert identical(moments(target), moments(source))
    assert "another order" in caplog.text
    for state in (source, target):
        optimizer, schedule = state.parts["optimizer"], state.parts["scheduler"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        optimizer.zero_grad()
        optimizer.step()
        schedule.step()
    assert identical(moments(target), moments(source))


def test_the_state_of_an_optimizer_that_is_built_alike_is_given_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    parts, target = stepped(two(in_two)), two(in_two)
    target.restore(parts)
    assert identical(target.state_dict(), parts)
    assert caplog.text == ""
    other = two(in_two).parts["optimizer"]
    other.load_state_dict(parts["optimizer"])  # torch itself reads it


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        (lambda net: in_two(net)[:1], ("model.decoder.bias", "model.decoder.weight")),
        (lambda net: [*in_two(net), {"params": [net.unused]}], ("model.unused",)),
        (lambda net: [{"params": [*net.encoder.parameters(), net.decoder.weight]}], ("model.decoder.bias",)),
    ],
)
def test_an_optimizer_of_other_parameters_is_refused_by_name(groups: Any, named: tuple[str, ...]) -> None:
    parts, target = stepped(two(in_two)), two(groups)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StateMismatch) as caught:
        target.restore(parts)
    assert (*caught.value.missing, *caught.value.unexpected) == named
    assert identical(target.state_dict(), before)


def test_groups_are_split_where_their_settings_are_clear_and_refused_where_they_are_not() -> None:
    def one(net: Two) -> list[dict[str, Any]]:
        return [{"params": [*net.encoder.parameters(), *net.decoder.parameters()]}]

    source, target = two(one), two(in_two)
    target.restore(stepped(source))
    assert identical(moments(target), moments(source))
    with pytest.raises(StateMismatch, match="whose settings differ"):
        two(one).restore(stepped(two(in_two)))


def test_a_group_with_a_name_keeps_its_settings_when_it_takes_over_parameters() -> None:
    def groups(net: Two, bias_in: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"params": [net.encoder.weight], "lr": 1e-2, "name": "slow"},
            {"params": [net.decoder.weight], "lr": 1e-4, "name": "fast"},
        ]
        found[bias_in]["params"] += [net.encoder.bias]
        return found

    parts, target = stepped(two(lambda net: groups(net, 0))), two(lambda net: groups(net, 1))
    target.restore(parts)
    optimizer = target.parts["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-4]


def test_several_optimizers_and_modules_each_go_by_their_names() -> None:
    def gan(turn: int) -> TrainState:
        torch.manual_seed(0)
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        both = {"g": first, "d": second}
        optimizers = {
            f"optimizer_{name}": torch.optim.SGD(list(net.parameters())[::turn], lr=0.1, momentum=0.9)
            for name, net in both.items()
        }
        return TrainState({**optimizers, **both})

    def step(state: TrainState) -> None:
        for name in "gd":
            net, optimizer = state.parts[name], state.parts[f"optimizer_{name}"]
            assert isinstance(net, nn.Module)
            assert isinstance(optimizer, torch.optim.Optimizer)
            optimizer.zero_grad()
            net(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()

    source, target = gan(1), gan(-1)
    step(source)
    target.restore(copy.deepcopy(source.state_dict()))
    step(source)
    step(target)
    assert identical(
        [dict(target.parts[n].state_dict()) for n in "gd"], [dict(source.parts[n].state_dict()) for n in "gd"]
    )


class Holder:
    """A part that keeps a module to itself."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def state_dict(self) -> dict[str, Any]:
        return {"net": dict(self.net.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.net.load_state_dict(state_dict["net"])


def test_parameters_of_a_module_that_another_part_holds_have_names() -> None:
    def held(groups: Any) -> TrainState:
        state = two(groups)
        net = state.parts["model"]
        assert isinstance(net, nn.Module)
        return TrainState({"optimizer": state.parts["optimizer"], "holder": Holder(net)})

    def moved(state: TrainState) -> Any:
        holder = state.parts["holder"]
        assert isinstance(holder, Holder)
        return moments(TrainState({"optimizer": state.parts["optimizer"], "model": holder.net}))

    whole = two(in_two)
    stepped(whole)
    net = whole.parts["model"]
    assert isinstance(net, nn.Module)
    source, target = TrainState({"optimizer": whole.parts["optimizer"], "holder": Holder(net)}), held(swapped)
    target.restore(copy.deepcopy(source.state_dict()))
    assert identical(moved(target), moved(source))


def test_tied_parameters_have_one_name() -> None:
    def tied() -> TrainState:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return TrainState({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})

    parts, target = stepped(tied()), tied()
    target.restore(parts)
    assert identical(target.state_dict(), parts)


def unknown(*shapes: tuple[int, ...], named: bool = False) -> tuple[TrainState, torch.optim.Optimizer]:
    parameters: list[Any] = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    given = [(f"p{len(one.shape)}{one.numel()}", one) for one in parameters] if named else parameters
    optimizer = torch.optim.AdamW(given)
    for one in parameters:
        one.grad = torch.ones_like(one) * one.numel()
    optimizer.step()
    return TrainState({"optimizer": optimizer}), optimizer


def test_parameters_of_no_known_module_go_by_place_and_shape() -> None:
    source, _ = unknown((2,), (3, 3))
    parts = copy.deepcopy(source.state_dict())
    unknown((2,), (3, 3))[0].restore(parts)
    with pytest.raises(StateMismatch, match="another shape"):
        unknown((3, 3), (2,))[0].restore(parts)
    with pytest.raises(StateMismatch, match="parameter 1 of group 0"):
        unknown((2,))[0].restore(parts)


def test_parameters_that_their_optimizer_names_go_by_that() -> None:
    source, one = unknown((2,), (3, 3), named=True)
    target, other = unknown((3, 3), (2,), named=True)
    target.restore(copy.deepcopy(source.state_dict()))
    assert other.param_groups[0]["param_names"] == ["p29", "p12"]
    (small, large), (first, second) = one.param_groups[0]["params"], other.param_groups[0]["params"]
    assert identical(dict(other.state[first]), dict(one.state[large]))
    assert identical(dict(other.state[second]), dict(one.state[small]))


def test_checkpoints_without_names_go_by_place_and_are_refused_by_shape() -> None:
    source, _ = unknown((2,), (3, 3))
    parts = copy.deepcopy(source.state_dict())
    del parts["optimizer"]["parameters"]
    target, _ = unknown((2,), (3, 3))
    target.restore(parts)
    assert identical(target.state_dict()["optimizer"]["state"], parts["optimizer"]["state"])
    for shapes in ([(3, 3), (2,)], [(2,), (3, 4)], [(2,)], [(2,), (3, 3), (1,)]):
        with pytest.raises(StateMismatch, match="optimizer"):
            unknown(*shapes)[0].restore(parts)


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    parts = copy.deepcopy(unknown((2,))[0].state_dict())
    other = TrainState({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], momentum=0.9)})
    with pytest.raises(StateMismatch, match="momentum"):
        other.restore(parts)


def test_the_optimizer_of_a_module_that_renames_its_weights_goes_by_place(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(OrderedDict(old=nn.Linear(2, 3)))
    source = TrainState({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})
    parts, other = stepped(source), Renames()
    target = TrainState({"model": other, "optimizer": torch.optim.AdamW(other.parameters())})
    target.restore(parts)
    assert "model.old.weight is model.new.weight" in caplog.text
    assert identical(target.state_dict()["optimizer"]["state"], parts["optimizer"]["state"])
