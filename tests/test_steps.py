"""A ready-made training step."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from mltrain.errors import UsageError
from mltrain.steps import FollowsMetric, HasDevice, HasEpochMetrics, HasParts, Supervised, moved
from tests.support.equality import identical
from tests.support.stepped import batch, network, step_of


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_a_step_is_forward_backward_and_one_step_of_the_optimizer() -> None:
    net = network()
    by_hand = copy.deepcopy(net)
    loss = F.cross_entropy(by_hand(batch()[0]), batch()[1])
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    got = step_of(net)(batch())
    assert torch.equal(got["loss"], loss.detach())
    assert all(torch.allclose(a, b) for a, b in zip(net.parameters(), by_hand.parameters(), strict=True))


def test_a_step_trains_in_training_mode_whatever_an_evaluation_left() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.eval()
    step_of(net)(batch())
    assert net.training
    assert int(net[1].num_batches_tracked) == 1


@pytest.mark.parametrize("accumulate", [2, 3, 8, 50])
@pytest.mark.parametrize("size", [8, 7, 1])
def test_accumulation_gives_the_gradient_of_the_whole_batch(accumulate: int, size: int) -> None:
    whole, cut = network(), network()
    expected = step_of(whole)(batch(size))
    got = step_of(cut, accumulate=accumulate)(batch(size))
    assert torch.allclose(got["loss"], expected["loss"])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(cut.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["mapping", "tuple", "list", "named tuple"])
def test_inputs_may_be_nested(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, inputs: Any) -> Tensor:
            if isinstance(inputs, Mapping):
                return self.inner(inputs["left"] + inputs["right"])
            left, right = (inputs.left, inputs.right) if kind == "named tuple" else inputs
            return self.inner(left + right)

    x, target = batch()
    inputs = {
        "mapping": {"left": x, "right": x},
        "tuple": (x, x),
        "list": [x, x],
        "named tuple": Pair(x, x),
    }[kind]
    one, several = Net(), Net()
    expected = step_of(one)((inputs, target))["loss"]
    assert torch.allclose(step_of(several, accumulate=3)((inputs, target))["loss"], expected)


def test_a_schedule_moves_once_a_step() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    step = Supervised(net, nn.CrossEntropyLoss(), optimizer, scheduler=schedule, accumulate=4)
    rates = []
    for _ in range(5):
        rates.append(step.learning_rate)
        step(batch())
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def accuracy() -> Any:
    return torchmetrics.classification.MulticlassAccuracy(2, average="micro")


def test_metrics_are_of_the_epoch_and_begin_anew() -> None:
    class Items(torchmetrics.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("seen", torch.tensor(0))

        def update(self, output: Tensor, target: Tensor) -> None:
            assert not output.requires_grad
            self.seen += len(target)

        def compute(self) -> Tensor:
            return self.seen

    step = step_of(network(), metrics={"items": Items()}, accumulate=3)
    for size in (8, 8, 5):
        step(batch(size))
    assert step.epoch_metrics() == {"items": 21.0}
    step(batch(4))
    assert step.epoch_metrics() == {"items": 4.0}


def test_half_an_epoch_of_metrics_survives_a_resume() -> None:
    def step_in_the_middle() -> Supervised:
        return step_of(network(), metrics={"accuracy": accuracy(), "mean": torchmetrics.MeanSquaredError()})

    def run(step: Supervised, size: int) -> None:
        inputs, targets = batch(size)
        for metric in step.metrics.values():
            scores = F.one_hot(targets, 2).float() * inputs[:, :1]
            metric.update(scores, targets if metric is step.metrics["accuracy"] else scores * 2)

    whole = step_in_the_middle()
    run(whole, 8)
    middle = whole.parts()["metrics"].state_dict()
    kept = copy.deepcopy(middle)
    run(whole, 5)
    resumed, at_once = step_in_the_middle(), step_in_the_middle()
    resumed.parts()["metrics"].load_state_dict(kept)
    at_once.parts()["metrics"].load_state_dict(kept)
    assert at_once.epoch_metrics().keys() == whole.metrics.keys(), "torchmetrics does not warn of missing updates"
    run(resumed, 5)
    assert resumed.epoch_metrics() == whole.epoch_metrics()


def test_every_part_that_has_a_state_is_named() -> None:
    net = network()
    step = step_of(net)
    assert step.parts().keys() == {"model", "optimizer"}
    schedule = torch.optim.lr_scheduler.ConstantLR(step.optimizer)
    full = Supervised(net, F.cross_entropy, step.optimizer, scheduler=schedule, metrics={"accuracy": accuracy()})
    assert full.parts().keys() == {"model", "optimizer", "scheduler", "metrics"}
    assert isinstance(full, HasParts)
    assert isinstance(full, HasDevice)
    assert isinstance(full, HasEpochMetrics)


def test_mixed_precision_trains_on_a_cpu_in_bfloat16_only() -> None:
    step = step_of(network())
    step.prepare(torch.device("cpu"), "bf16")
    exact = step_of(network())(batch())["loss"]
    got = step(batch())["loss"]
    assert torch.allclose(got, exact, rtol=0.05)
    assert not torch.equal(got, exact)
    assert all(parameter.dtype is torch.float32 for parameter in step.model.parameters())
    with pytest.raises(UsageError, match="Expected a CUDA device"):
        step.prepare(torch.device("cpu"), "fp16")


def test_a_batch_has_at_least_one_piece() -> None:
    with pytest.raises(UsageError, match="accumulate=0"):
        step_of(network(), accumulate=0)


def test_a_batch_moves_with_all_that_it_holds() -> None:
    nested = {"a": [torch.ones(1), "text", 3], "b": (torch.ones(1), Pair(torch.ones(1), torch.ones(1))), "c": None}
    there = moved(nested, torch.device("meta"))
    assert there["a"][0].device.type == "meta"
    assert there["a"][1:] == ["text", 3]
    assert isinstance(there["b"][1], Pair)
    assert there["b"][1].right.device.type == "meta"
    assert identical(moved(nested, torch.device("cpu")), nested)


def at_zero(net: nn.Module, **options: Any) -> Supervised:
    """A finite loss with a NaN gradient: the root of zero."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + ((output - output) ** 2).sqrt().mean()

    return Supervised(net, loss, torch.optim.AdamW(net.parameters(), lr=0.1), **options)


@pytest.mark.parametrize("options", [{}, {"clip": 1.0}, {"accumulate": 3}])
def test_a_gradient_that_is_not_finite_updates_nothing_and_is_returned(options: Any) -> None:
    step = at_zero(network(), metrics={"accuracy": accuracy()}, **options)
    before = copy.deepcopy({name: part.state_dict() for name, part in step.parts().items()})
    result = step(batch())
    assert torch.isfinite(result["loss"])
    assert not torch.isfinite(result["grad_norm"])
    assert identical({name: part.state_dict() for name, part in step.parts().items()}, before)
    assert step.metrics["accuracy"].update_count == 0


def plateau(net: nn.Module, **options: Any) -> Supervised:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, **options)
    return Supervised(net, nn.CrossEntropyLoss(), optimizer, scheduler=schedule)


def test_a_schedule_that_follows_a_metric_moves_with_evaluations_only() -> None:
    step = plateau(network())
    assert isinstance(step, FollowsMetric)
    assert (step.follows, plateau(network(), mode="max").follows, step_of(network()).follows) == ("min", "max", None)
    step(batch())
    assert step.learning_rate == 1.0
    for value, rate in ((1.0, 1.0), (0.5, 1.0), (0.6, 0.5), (float("nan"), 0.25)):
        step.evaluated(value)
        assert step.learning_rate == rate


def test_infinite_gradients_while_a_scaler_looks_for_its_scale_do_not_count_until_they_do_not_end() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * 1e8  # with the first scales the gradient overflows, as in fp16

    net = network()
    step = Supervised(
        net, loss, torch.optim.SGD(net.parameters(), lr=1e-12), clip=1.0, metrics={"accuracy": accuracy()}
    )
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**110)
    results = [step(batch()) for _ in range(30)]
    skipped = [result for result in results if "grad_norm" not in result]
    assert 0 < len(skipped) < 30
    assert all(torch.isfinite(result["grad_norm"]) for result in results[len(skipped) :])
    assert step.metrics["accuracy"].update_count == 30

    stuck = at_zero(network())
    stuck.scaler = torch.amp.GradScaler("cpu")
    results = [stuck(batch()) for _ in range(40)]
    assert ["grad_norm" in result for result in results] == [False] * 30 + [True] * 10
    assert stuck.parts()["scaler"] is stuck.scaler


def test_metrics_that_are_restored_are_on_the_device_that_trains() -> None:
    class Keeps:
        """As torchmetrics does: it takes the tensors that it is given, wherever they are."""

        _update_count = 0

        def __init__(self) -> None:
            self.seen = torch.zeros(2)

        def persistent(self, mode: bool) -> None: ...

        def to(self, device: torch.device) -> None:
            self.seen = self.seen.to(device)

        def reset(self) -> None:
            self.seen = torch.zeros_like(self.seen)

        def state_dict(self) -> Any:
            return {"seen": self.seen}

        def load_state_dict(self, state: Any) -> None:
            self.seen = state["seen"]

    metric = Keeps()
    step = step_of(network(), metrics={"seen": metric})
    step.prepare(torch.device("meta"), "off")  # a device that every machine has beside the CPU
    step.parts()["metrics"].load_state_dict({"seen": {"state": {"seen": torch.ones(2)}, "updates": 1}})
    assert metric.seen.device.type == "meta"
