"""The commands on a real run, each as a user would use it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.workplace import Workplace


@pytest.fixture(scope="module")
def trained(fork_server: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, str]:
    workplace = Workplace(tmp_path_factory.mktemp("commands") / "here", fork_server)  # type: ignore[arg-type]
    done = workplace.mltrain("train", "tiny.py", "epochs=6", "max_to_keep=2", "model_save_path=weights")
    assert done.code == 0, done.err
    return workplace, done.run_id


def names(workplace: Workplace, run_id: str) -> list[str]:
    return [row["checkpoint"] for row in workplace.mltrain("checkpoints", run_id, "--json").json]


def test_retention_keeps_the_newest_and_the_best_in_the_store(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert [row["step"] for row in rows][-2:] == [30, 36]
    assert len(rows) <= 3
    assert sum("best" in row["is"] for row in rows) == 1
    removed = (workplace.folder / "mlruns/0" / run_id / "artifacts/retention.jsonl").read_text().splitlines()
    assert len(removed) == 6 - len(rows)


def test_inspect_tells_parts_sizes_and_that_it_is_intact(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    facts = workplace.mltrain("inspect", run_id, "--json").json
    assert facts["step"] == 36
    assert facts["problems"] == []
    assert {part["part"] for part in facts["parts"]} >= {"model", "optimizer", "scheduler", "loader", "rng", "history"}
    assert "Intact" in workplace.mltrain("inspect", run_id).out


def test_weights_are_also_files_in_a_local_folder(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    latest = load_file(workplace.folder / "weights" / "latest.safetensors")
    assert latest["0.weight"].equal(workplace.weights(run_id)["model"]["0.weight"])
    assert (workplace.folder / "weights" / "best.safetensors").is_file()


def test_pull_brings_the_best_weights_verified_with_config_and_history(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    pulled = workplace.mltrain("pull", run_id, "--to", "model", "--json")
    assert pulled.code == 0, pulled.err
    assert set(pulled.json["files"]) == {"history.csv", "manifest.json", "model.safetensors", "params.json"}
    best = [row["checkpoint"] for row in workplace.mltrain("checkpoints", run_id, "--json").json if "best" in row["is"]]
    assert [pulled.json["checkpoint"]] == best


def test_pull_from_an_experiment_takes_the_best_run(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    worse = workplace.mltrain("train", "tiny.py", "epochs=1", "lr=1e-6")
    pulled = workplace.mltrain(
        "pull", "--experiment", "Default", "--metric", "val/loss", "--mode", "min", "--to", "best-of-all", "--json"
    )
    assert pulled.json["run_id"] == run_id != worse.run_id


def test_evaluate_gives_what_was_measured_in_training(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    before = names(workplace, run_id)
    done = workplace.mltrain("evaluate", run_id, "--checkpoint", "latest", "--json")
    assert done.code == 0, done.err
    newest = workplace.mltrain("inspect", run_id, "--json").json
    assert done.json["metrics"]["val/accuracy"] == newest["metrics"]["val/accuracy"]
    assert names(workplace, run_id) == before


def test_a_pinned_checkpoint_survives_a_prune_and_goes_after_it_is_unpinned(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=5").run_id
    pinned = workplace.mltrain("pin", run_id, "--checkpoint", "epoch:1", "--reason", "for the paper")
    assert pinned.code == 0, pinned.err
    dry = workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--dry-run", "--json").json
    assert "pinned: for the paper" in dry[0]["keep"].values()
    assert len(names(workplace, run_id)) == 5
    assert workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes").code == 0
    assert names(workplace, run_id)[0] == "step-000000006-a01"
    assert workplace.mltrain("unpin", run_id, "--checkpoint", "epoch:1").code == 0
    workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes")
    assert "step-000000006-a01" not in names(workplace, run_id)
    assert workplace.mltrain("verify", run_id).code == 0


def test_without_yes_prune_asks_and_removes_nothing(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3").run_id
    asked = workplace.mltrain("prune", run_id, "--keep", "Latest(1)")
    assert "Remove these?" in asked.out
    assert len(names(workplace, run_id)) == 3


def test_a_live_run_is_not_pruned_from_outside(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    run_id = started.until("run_id=").partition("run_id=")[2].split()[0]
    started.until("epoch ")
    assert workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes").code == 4
    whole = workplace.mltrain("prune", "--experiment", "Default", "--keep", "Latest(1)", "--yes", "--json").json
    assert [plan["left_alone"] for plan in whole] == ["it is being trained"]
    started.child.kill(15)
    started.wait()


def test_a_fork_is_a_new_run_that_names_its_parent_and_frees_the_source_again(workplace: Workplace) -> None:
    source = workplace.mltrain("train", "tiny.py", "epochs=2").run_id
    fork = workplace.mltrain("train", "--fork-run", source, "--resume-from", "epoch:1", "epochs=3", "lr=0.5")
    assert fork.code == 0, fork.err
    assert fork.run_id != source
    from mlflow import MlflowClient

    client = MlflowClient(workplace.uri)
    tags = client.get_run(fork.run_id).data.tags
    assert tags["mltrain.forked_from"] == f"{source}/step-000000006-a01"
    assert tags["mlflow.parentRunId"] == source
    assert not [tag for tag in client.get_run(source).data.tags if tag.startswith("mltrain.pin.")]
    assert workplace.points(source)["epoch"] == [(6, 1.0), (12, 2.0)]
    assert workplace.points(fork.run_id)["epoch"] == [(12, 2.0), (18, 3.0)]


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
    imported = workplace.mltrain("import", "foreign.pth", "tiny.py", "epochs=3")
    assert imported.code == 0, imported.err
    assert "taken  optimizer" in imported.out
    assert "left   args" in imported.out
    resumed = workplace.mltrain("train", "--resume-run", imported.run_id)
    assert resumed.code == 0, resumed.err
    assert "epoch 3 of 3" in resumed.out


def test_an_import_without_a_project_keeps_the_weights_as_they_are(workplace: Workplace) -> None:
    torch.save({"layer.weight": torch.arange(6.0)}, workplace.folder / "plain.pt")
    imported = workplace.mltrain("import", "plain.pt")
    assert imported.code == 0, imported.err
    workplace.mltrain("pull", imported.run_id, "--checkpoint", "latest", "--to", "out")
    assert load_file(workplace.folder / "out" / "model.safetensors")["layer.weight"].equal(torch.arange(6.0))


def test_doctor_finds_a_sound_machine_and_leaves_nothing_behind(workplace: Workplace) -> None:
    done = workplace.mltrain("doctor", "--json")
    assert done.code == 0, done.err
    assert {finding["what"]: finding["state"] for finding in done.json}["artifact store"] == "good"
    assert workplace.mltrain("runs", "--json").json == []


def test_closed_output_does_not_end_a_training(workplace: Workplace, tmp_path: Path) -> None:
    import subprocess
    import sys

    words = f"{sys.executable} -m mltrain train tiny.py epochs=3 | head -1"
    subprocess.run(["bash", "-c", words], cwd=workplace.folder, env=workplace.environment, check=True, timeout=120)
    assert workplace.mltrain("runs", "--json").json[0]["state"] == "finished"


def test_runs_stand_side_by_side_with_what_differs(workplace: Workplace) -> None:
    runs = [workplace.mltrain("train", "tiny.py", "epochs=1", f"lr={rate}").run_id for rate in ("1e-2", "0.01", "0.3")]
    found = workplace.mltrain("compare", *runs, "--json").json
    assert found["parameters"] == {"lr": [0.01, 0.01, 0.3]}
    assert [run["run_id"] for run in found["runs"]] == runs
    assert found["best"]["epoch"] == [1, 1, 1]
    assert found["best"]["val/loss"][0] == found["best"]["val/loss"][1] == found["last"]["val/loss"][0]
    assert found["best"]["val/loss"][2] != found["best"]["val/loss"][0]
    said = workplace.mltrain("compare", *runs)
    assert said.code == 0, said.err
    assert "lr" in said.out
    assert "batch_size" not in said.out
    alone = workplace.mltrain("compare", runs[0])
    assert (alone.code, "two or more" in alone.err) == (2, True)
