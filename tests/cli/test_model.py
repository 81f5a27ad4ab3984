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
