"""``mltrain sync``, ``mltrain import`` and ``mltrain doctor``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mltrain.cli import app
from mltrain.delivery.sync import Synced
from tests.support.workplace import Workplace


@pytest.mark.parametrize("compiled", [False, True])
def test_a_foreign_checkpoint_becomes_the_first_of_a_run_that_trains_on(compiled: bool, workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=2").run_id
    parts = workplace.weights(run_id)
    prefix = "_orig_mod." if compiled else "module."
    foreign = {
        "state_dict": {prefix + name: tensor for name, tensor in parts["model"].items()},
        "optimizer_state_dict": parts["optimizer"],
        "epoch": 2,
        "history": {"train/loss": [0.7, 0.6]},
        "args": "unknown",
    }
    torch.save(foreign, workplace.folder / "foreign.pth")
    before = {run["run_id"] for run in workplace.mltrain("runs", "--json").json}
    for wrong in ("lr=fast", "hidden=-1"):
        assert workplace.mltrain("import", "foreign.pth", "tiny.py", wrong).code != 0
    assert {run["run_id"] for run in workplace.mltrain("runs", "--json").json} == before, (
        "refused before a run is created"
    )
    imported = workplace.mltrain("import", "foreign.pth", "tiny.py", "epochs=3")
    assert imported.code == 0, imported.err
    assert "taken  optimizer" in imported.out
    assert "left   args" in imported.out
    assert [line.split()[1] for line in imported.out.splitlines() if line.startswith("fresh")] == [
        "scheduler:",
        "metrics:",
        "counter:",
    ]
    assert f"mltrain train --resume-run {imported.run_id}" in imported.out
    resumed = workplace.mltrain("train", "--resume-run", imported.run_id)
    assert resumed.code == 0, resumed.err
    assert "epoch 3 of 3" in resumed.out
    assert "WARNING" not in resumed.err


def test_an_import_without_a_project_keeps_the_weights_as_they_are(workplace: Workplace) -> None:
    torch.save({"layer.weight": torch.arange(6.0)}, workplace.folder / "plain.pt")
    imported = workplace.mltrain("import", "plain.pt")
    assert imported.code == 0, imported.err
    workplace.mltrain("pull", imported.run_id, "--checkpoint", "latest", "--to", "out")
    assert load_file(workplace.folder / "out" / "model.safetensors")["layer.weight"].equal(torch.arange(6.0))


def test_a_run_that_was_imported_without_a_project_asks_for_one_until_it_has_trained(workplace: Workplace) -> None:
    first = workplace.mltrain("train", "tiny.py", "epochs=1").run_id
    torch.save(workplace.weights(first)["model"], workplace.folder / "plain.pt")
    imported = workplace.mltrain("import", "plain.pt")
    assert f"mltrain train PROJECT --resume-run {imported.run_id}" in imported.out
    for command in (["train", "--resume-run"], ["train", "--fork-run"], ["evaluate"]):
        refused = workplace.mltrain(*command, imported.run_id)
        assert refused.code == 2
        assert f"Run {imported.run_id} was imported without a project." in refused.err
        assert f"Try: mltrain {command[0]} " in refused.err
        assert "PROJECT" in refused.err
    trained = workplace.mltrain("train", "tiny.py", "--resume-run", imported.run_id, "epochs=1")
    assert trained.code == 0, trained.err
    again = workplace.mltrain("train", "--resume-run", imported.run_id, "epochs=2")
    assert again.code == 0, again.err
    assert "epoch 2 of 2" in again.out


def test_doctor_finds_a_sound_machine_and_leaves_nothing_behind(workplace: Workplace) -> None:
    done = workplace.mltrain("doctor", "--json")
    assert done.code == 0, done.err
    assert {finding["what"]: finding["state"] for finding in done.json}["artifact store"] == "good"
    assert workplace.mltrain("runs", "--json").json == []


def test_a_sync_that_is_interrupted_has_printed_what_it_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Synced]:
        yield Synced("0" * 32, sent=3, uploaded=("step-000000002-a02",), dropped=2)
        raise KeyboardInterrupt

    monkeypatch.setattr("mltrain.delivery.sync.sync", interrupted)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = CliRunner().invoke(app, ["sync"])
    assert done.exit_code == 130
    assert (
        f"{'0' * 32}: 3 records sent, 1 checkpoint uploaded, 2 replaced by a later attempt, 0 still waiting"
        in done.output
    )
