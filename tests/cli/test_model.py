"""``mltrain evaluate`` and ``mltrain pull`` on a real run."""

import json
import re
import urllib.request
import warnings

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from tests.support.pages import execute
from tests.support.servers import ModelServer
from tests.support.workplace import Workplace


def test_pull_brings_the_best_weights_verified_with_config_and_history(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    pulled = workplace.mltrain("pull", run_id, "--to", "model", "--json")
    assert pulled.code == 0, pulled.err
    assert set(pulled.json["files"]) == {"history.csv", "manifest.json", "model.safetensors", "params.json"}
    best = [row["checkpoint"] for row in workplace.mltrain("checkpoints", run_id, "--json").json if "best" in row["is"]]
    assert [pulled.json["checkpoint"]] == best


def test_a_pulled_model_is_registered_and_a_wrong_name_pulls_nothing(
    trained: tuple[Workplace, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace, run_id = trained
    for words in (["--alias", "champion"], ["--register", "a/b"], ["--register", "wear", "--alias", "latest"]):
        refused = workplace.mltrain("pull", run_id, "--to", "registered", *words)
        assert (refused.code, (workplace.folder / "registered").exists()) == (2, False), refused.err
    pulled = workplace.mltrain(
        "pull", run_id, "--to", "registered", "--register", "wear", "--alias", "champion", "--json"
    )
    assert pulled.code == 0, pulled.err
    assert (pulled.json["model"]["name"], pulled.json["model"]["version"]) == ("wear", 1)
    client = MlflowClient(workplace.uri)
    version = client.get_model_version_by_alias("wear", "champion")
    assert (version.run_id, version.source) == (run_id, f"models:/{pulled.json['model']['model_id']}")
    model = client.get_logged_model(pulled.json["model"]["model_id"])
    assert model.tags["mltrain.checkpoint"] == pulled.json["checkpoint"]
    measured = workplace.mltrain("inspect", run_id, "--checkpoint", "best", "--json").json
    assert {m.key: m.value for m in model.metrics}["val/loss"] == measured["metrics"]["val/loss"]
    assert {m.step for m in model.metrics} == {measured["step"]}
    inputs = torch.rand(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own modules
        monkeypatch.setenv("MLFLOW_TRACKING_URI", workplace.uri)
        names = {"mlflow": mlflow, "array": inputs.numpy(), "tensor": inputs}
        execute("own_project", 1, names, **{"NAME@": "wear@"})


def test_what_cannot_be_done_is_refused_before_weights_are_downloaded(trained: tuple[Workplace, str]) -> None:
    workplace, _ = trained
    source = (workplace.folder / "tiny.py").read_text()
    bare = re.sub(r"^        (evaluate|predictor)=.*\n", "", source, flags=re.MULTILINE)
    (workplace.folder / "bare.py").write_text(bare)
    run_id = workplace.mltrain("train", "bare.py", "epochs=1").run_id
    weights = next(workplace.folder.glob(f"**/{run_id}/artifacts/checkpoints/*/model.safetensors"))
    weights.rename(weights.with_suffix(".away"))  # a download would end in another error
    (workplace.folder / "file").touch()
    for words, expected in (
        (["pull", run_id, "--to", "bare", "--register", "bare"], "predictor"),
        (["evaluate", run_id], "no evaluate()"),
        (["pull", run_id, "--to", "file"], "not a folder"),
        (["evaluate", run_id, "--to", "file/below"], "not a folder"),
    ):
        refused = workplace.mltrain(*words)
        assert expected in refused.err, refused.err
        assert refused.code in (2, 5)
    assert not (workplace.folder / "bare").exists()
    assert not MlflowClient(workplace.uri).search_registered_models("name = 'bare'")


@pytest.mark.slow
def test_a_registered_model_is_served_by_mlflow(trained: tuple[Workplace, str]) -> None:
    """``mlflow models serve`` answers in a process without the project."""
    workplace, run_id = trained
    pulled = workplace.mltrain("pull", run_id, "--to", "served", "--register", "served", "--alias", "champion")
    assert pulled.code == 0, pulled.err
    server = ModelServer("models:/served@champion", workplace.environment)
    server.start()
    try:
        request = urllib.request.Request(
            f"{server.uri}/invocations",
            json.dumps({"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 3}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            predictions = json.load(answer)["predictions"]
    finally:
        server.kill()
    assert len(predictions) == 3
    assert predictions[0] == pytest.approx(predictions[2])
    assert len(predictions[0]) == 2


def test_kept_checkpoints_become_logged_models_where_asked(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "epochs=2", "max_to_keep=2", "logged_models=kept")
    assert done.code == 0, done.err
    models = MlflowClient(workplace.uri).search_logged_models(["0"])
    assert sorted(m.tags["mltrain.checkpoint"] for m in models) == workplace.checkpoint_names(done.run_id)
    source = (workplace.folder / "tiny.py").read_text()
    (workplace.folder / "silent.py").write_text(source.replace("lambda: (net, held_out.inputs[:2])", "None"))
    refused = workplace.mltrain("train", "silent.py", "epochs=1", "logged_models=best")
    assert (refused.code, "needs a predictor" in refused.err) == (2, True)


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


def test_what_a_project_prints_does_not_mix_with_the_result(workplace: Workplace) -> None:
    talking = "\n\ndef build(config, plain=build):\n    print('the project builds')\n    return plain(config)\n"
    (workplace.folder / "talking.py").write_text((workplace.folder / "tiny.py").read_text() + talking)
    run_id = workplace.mltrain("train", "talking.py", "epochs=1").run_id
    assert workplace.mltrain("pull", run_id, "--to", "model").code == 0
    for words in (["evaluate", run_id, "--json"], ["import", "model/model.safetensors", "talking.py", "--json"]):
        done = workplace.mltrain(*words)
        assert done.code == 0, done.err
        assert done.json
        assert "the project builds" in done.err


def test_evaluate_names_a_report_only_where_the_project_has_one(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    done = workplace.mltrain("evaluate", run_id, "--to", "tables")
    assert done.code == 0, done.err
    assert "Report" not in done.out
    assert "The project 'tiny.py' has no report, so nothing is written to tables." in done.err
    assert not (workplace.folder / "tables").exists()
    assert workplace.mltrain("evaluate", run_id, "--to", "tables", "--json").json["report"] is None
    assert "no report" not in workplace.mltrain("evaluate", run_id).err
    reporting = "\n\ndef build(config, plain=build):\n    return dataclasses.replace(plain(config), report=report)\n"
    code = "import dataclasses\n\n\ndef report(folder):\n    (folder / 'a.csv').write_text('a')\n    return {'mean': 1.0}\n"
    source = (workplace.folder / "tiny.py").read_text()
    (workplace.folder / "reporting.py").write_text(source + "\n\n" + code + reporting)
    reported = workplace.mltrain("evaluate", run_id, "reporting.py", "--to", "tables", "--json")
    assert reported.json["report"] == "tables"
    assert (workplace.folder / "tables" / "a.csv").exists()


def test_a_metric_that_no_run_has_is_named_with_the_nearest(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    refused = workplace.mltrain("pull", "--experiment", "Default", "--metric", "val/lss", "--to", "out")
    assert refused.code == 2
    assert "the metric 'val/lss'. Did you mean 'val/loss'?" in refused.err
    unused = workplace.mltrain("pull", run_id, "--metric", "val/loss", "--to", "out")
    assert unused.code == 2
    assert "rank the runs of an experiment, and a run was named" in unused.err
