"""Only states that a training can continue become checkpoints."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mltrain.checkpoint.finite import nonfinite
from mltrain.errors import NonFiniteLoss
from tests.support.equality import identical
from tests.support.runs import FolderRun, epochs, snapshot_of, state_at, train

NAN, INF = math.nan, math.inf
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64]


def wrong(state: dict[str, Any]) -> list[str]:
    copied = snapshot_of(state)
    return nonfinite(copied.tree, copied.tensors)


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.linspace(-3, 3, 15).reshape(5, 3)
    tensor[3, 1] = value
    return tensor.to(dtype)


def optimizer(net: nn.Module) -> dict[str, Any]:
    adam = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()  # type: ignore[union-attr]
    adam.step()
    return adam.state_dict()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_that_is_not_finite_is_found_in_weights_of_every_dtype(value: float, dtype: torch.dtype) -> None:
    assert wrong({"model": {"a": with_one(1e4, dtype), "b": with_one(value, dtype)}}) == ["model.b"]
    assert wrong({"model": {"b": with_one(value, dtype).t()}}) == ["model.b"]
    assert wrong({"model": {"a": with_one(-1e4, dtype).t(), "zero": torch.zeros(0, dtype=dtype)}}) == []


def test_the_narrowest_dtype_has_no_infinity_but_nan() -> None:
    assert wrong({"model": {"a": with_one(448, torch.float8_e4m3fn)}}) == []
    assert wrong({"model": {"a": with_one(NAN, torch.float8_e4m3fn)}}) == ["model.a"]


def test_a_number_at_the_very_end_of_a_large_tensor_is_found() -> None:
    large = torch.zeros(3_000_001)
    assert wrong({"model": {"a": large}}) == []
    large[-1] = NAN
    assert wrong({"model": {"a": large}}) == ["model.a"]


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_state_of_every_optimizer_counts_wherever_it_stands(value: float) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    state = optimizer(net)
    assert wrong({"model": net.state_dict(), "optimizer": state, "opts": [state]}) == []
    state["state"][2]["exp_avg_sq"][0, 1] = value
    assert wrong({"optimizer": state}) == ["optimizer.state.2.exp_avg_sq"]
    assert wrong({"optimizers": [{"gen": state}]}) == ["optimizers.0.gen.state.2.exp_avg_sq"]


def test_optimizer_state_in_one_storage_is_looked_at_piece_by_piece() -> None:
    flat = torch.zeros(10)
    flat[7] = NAN
    state = {"state": {0: {"average": flat[:5]}, 1: {"average": flat[5:]}}, "param_groups": []}
    assert wrong({"optimizer": state}) == ["optimizer.state.1.average"]


def test_weights_of_further_networks_count_under_any_name() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    net[1].running_var[1] = NAN  # type: ignore[index,operator]
    assert wrong({"critic": net.state_dict()}) == ["critic.1.running_var"]
    assert wrong({"nets": {"critic": dict(net.state_dict())}}) == ["nets.critic.1.running_var"]


def test_an_exploded_weight_counts_even_where_nothing_finite_is_left() -> None:
    assert wrong({"model": {"head.weight": torch.full((2, 2), INF)}}) == ["model.head.weight"]
    assert wrong({"model": {"weight": torch.ones(2), "bias": torch.tensor([-INF, 0])}}) == ["model.bias"]


def test_what_is_meant_to_be_infinite_is_no_reason_to_refuse() -> None:
    mask = torch.full((4, 4), -INF).triu(1)
    observed = {"lowest": torch.tensor(INF), "highest": torch.tensor(-INF), "of_each": torch.full((3,), INF)}
    state = optimizer(nn.Linear(2, 1))
    state["param_groups"][0]["lr"] = INF
    state["param_groups"][0]["limit"] = torch.tensor(NAN)
    assert wrong({"model": {"weight": torch.ones(2), "mask": mask, **observed}, "optimizer": state}) == []


def test_what_is_no_weight_may_be_anything() -> None:
    mean = {"mean_value": torch.tensor(NAN), "weight": torch.tensor(0.0)}
    state = {
        "metrics": {"loss": {"state": mean, "updates": 0}, "all": {"a.weight": torch.tensor(0.0), "a.mean": mean}},
        "stopping": {"best": INF, "history": [NAN, INF], "values": torch.tensor([NAN])},
        "history": {"rows": [{"val/loss": NAN}]},
        "rng": torch.get_rng_state(),
        "seen": torch.tensor([NAN]),
        "figures": {"model": {"loss": torch.tensor([NAN, 1.0])}},
    }
    assert wrong({**state_at(1), **state}) == []
    assert wrong({"model": {"ids": torch.tensor([2**31 - 1, -1], dtype=torch.int32), "on": torch.tensor([True])}}) == []


def diverged(epoch: int) -> dict[str, Any]:
    state = state_at(epoch)
    state["model"]["weight"][2] = NAN
    return state


def test_a_diverged_state_takes_no_place_and_the_run_ends_as_failed(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    manager = run.manager(max_to_keep=1)
    train(manager, 1, 2, loss=float)
    manager.save_epoch_checkpoint(diverged(3), 3, {"val/loss": 0.0})
    manager.wait()
    assert isinstance(manager.failure, NonFiniteLoss)
    assert "epoch 3 (step-000000003-a01) is not a checkpoint" in caplog.text
    assert "model.weight" in caplog.text
    assert epochs(manager) == [1, 2]
    assert manager.best().epoch == 1  # type: ignore[union-attr]
    assert run.tags["mltrain.latest"] == "step-000000002-a01"
    assert manager.peek()["epoch"] == 2  # type: ignore[index]
    manager.save_interrupt_checkpoint(diverged(3))
    with pytest.raises(NonFiniteLoss, match=r"model\.weight"):
        manager.close()
    assert run.status == "FAILED"
    with run.next_attempt().manager() as later:
        assert later.load_latest_checkpoint()["epoch"] == 2  # type: ignore[index]


def test_a_state_that_is_finite_again_is_kept(run: FolderRun) -> None:
    with run.manager() as manager:
        manager.save_epoch_checkpoint(diverged(1), 1)
        manager.wait()
        manager.save_epoch_checkpoint(state_at(1), 1)
        assert manager.wait(60)
        assert manager.failure is None
        assert identical(manager.load_latest_checkpoint(), state_at(1))


def test_a_foreign_file_that_is_not_finite_makes_no_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from mltrain.commands.import_checkpoint import import_file
    from mltrain.tracking.client import TrackingClient
    from tests.support.database import fresh_database

    uri = fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    server = TrackingClient(uri, MlflowClient(uri))
    file = tmp_path / "theirs.pth"
    torch.save({"model_state_dict": {"layer.weight": with_one(NAN)}, "epoch": 3}, file)
    with pytest.raises(NonFiniteLoss, match=r"model\.layer\.weight"):
        import_file(file, server, None, {}, None)
    assert list(server.client.search_runs(["0"])) == []
