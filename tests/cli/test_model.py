"""``mltrain evaluate`` and ``mltrain pull`` on a real run."""

from tests.support.workplace import Workplace


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
    before = workplace.checkpoint_names(run_id)
    done = workplace.mltrain("evaluate", run_id, "--checkpoint", "latest", "--json")
    assert done.code == 0, done.err
    newest = workplace.mltrain("inspect", run_id, "--json").json
    assert done.json["metrics"]["val/accuracy"] == newest["metrics"]["val/accuracy"]
    assert workplace.checkpoint_names(run_id) == before
