"""Trained through the library: killed and resumed exactly, judged, and as good as the documentation says."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mltrain.errors import DataError, UsageError
from projects.tool_wear import ToolWearClassifier, npz
from projects.tool_wear.estimates import Estimates
from projects.tool_wear.export import export
from projects.tool_wear.predict import predict
from projects.tool_wear.project import Config, baselines_of, split_of, wear_baselines_of
from projects.tool_wear.results import Results
from tests.support.equality import identical
from tests.support.workplace import Workplace

from .waves import SMALL, TRAIN, VAL

ROOT = Path(__file__).parents[3]
QUICK = ("train", "tool_wear", "--preset", "quick", "num_threads=1")
TINY = (*QUICK, "cuts=30", "window_steps=16", "hidden=8", "epochs=4", "batch_size=8", "rocket_kernels=0")
"""A few steps an epoch, on generated tools of thirty cuts."""


@pytest.mark.faults
def test_a_killed_training_resumes_as_if_nothing_had_happened(workplace: Workplace) -> None:
    whole = workplace.mltrain(*TINY)
    assert whole.code == 0, whole.err
    started = workplace.start(*TINY)
    run_id = next(
        line.removeprefix("run_id=")
        for line in started.until("epoch    1/4").splitlines()
        if line.startswith("run_id=")
    )
    started.child.kill(9)
    started.wait()
    resumed = workplace.mltrain("train", "--resume-run", run_id)
    assert resumed.code == 0, resumed.err
    assert workplace.points(run_id) == workplace.points(whole.run_id)
    expected, got = workplace.weights(whole.run_id), workplace.weights(run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()


def test_a_pulled_model_predicts_what_the_evaluation_reports(workplace: Workplace) -> None:
    done = workplace.mltrain(*TINY)
    evaluated = workplace.mltrain("evaluate", done.run_id, "--to", "report", "--json")
    assert evaluated.code == 0, evaluated.err
    metrics = evaluated.json["metrics"]
    table = pd.read_csv(workplace.folder / "report" / "test" / "predictions.csv")
    assert (table["class"] == table["predicted"]).mean() == pytest.approx(metrics["test/accuracy"])
    assert "test/accuracy_random_forest" in metrics
    assert "Best on the validation tools: " in evaluated.err

    model = workplace.folder / "model"
    assert workplace.mltrain("pull", done.run_id, "--to", model).code == 0
    config = Config.load(base=json.loads((model / "params.json").read_text()))
    npz.write(workplace.folder / "test.npz", split_of(config).test)
    again = predict(model, workplace.folder / "test.npz").predictions()
    assert again["predicted"].tolist() == table["predicted"].tolist()
    np.testing.assert_allclose(again["p(severe)"], table["p(severe)"], rtol=1e-4, atol=1e-5)


def test_the_better_method_is_exported_and_predicts_without_pickles(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = workplace.mltrain(*TINY)
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    folder = workplace.folder / "model"
    assert export(done.run_id, folder, "random forest") == "random forest"
    config = Config.load(base=json.loads((folder / "params.json").read_text()))
    split = split_of(config)
    npz.write(workplace.folder / "test.npz", split.test)
    expected = baselines_of(config, split).fitted("random forest").predict_proba(split.test.signals)
    got = predict(folder, workplace.folder / "test.npz")
    np.testing.assert_allclose(got.probabilities, expected)
    (folder / "baseline.skops").write_bytes(b"damaged")
    with pytest.raises(DataError, match="Export it again"):
        predict(folder, workplace.folder / "test.npz")
    assert export(done.run_id, folder, "LSTM") == "LSTM"
    assert not (folder / "baseline.skops").exists()
    with pytest.raises(UsageError, match="Methods: LSTM, majority"):
        export(done.run_id, folder, "forest")


def test_wear_is_learnt_pulled_exported_and_predicted_with_its_interval(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = workplace.mltrain(*TINY, "target=wear", "coverage=0.8")
    assert done.code == 0, done.err
    evaluated = workplace.mltrain("evaluate", done.run_id, "--to", "report", "--json")
    assert evaluated.code == 0, evaluated.err
    assert "Smallest mean error on the validation tools: " in evaluated.err
    metrics = evaluated.json["metrics"]
    table = pd.read_csv(workplace.folder / "report" / "test" / "predictions.csv")
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    folder, columns = workplace.folder / "model", ["lower_um", "predicted_um", "upper_um"]

    assert export(done.run_id, folder, "LSTM") == "LSTM"
    config = Config.load(base=json.loads((folder / "params.json").read_text()))
    split = split_of(config)
    npz.write(workplace.folder / "test.npz", split.test)
    again = predict(folder, workplace.folder / "test.npz")
    np.testing.assert_allclose(again.predictions()[columns], table[columns], rtol=1e-4)
    assert again.scores()["coverage"] == pytest.approx(metrics["test/coverage"], abs=0.02)

    assert export(done.run_id, folder, "ridge") == "ridge"
    expected = wear_baselines_of(config, split).estimates("ridge", split.test).predictions()
    np.testing.assert_allclose(predict(folder, workplace.folder / "test.npz").predictions()[columns], expected[columns])
    best = min(("", "_mean", "_ridge", "_random_forest"), key=lambda name: metrics[f"val/mae_um{name}"])
    assert export(done.run_id, folder).lower().replace(" ", "_") == (best.removeprefix("_") or "lstm")
    monkeypatch.setattr(Estimates, "scores", lambda _: {"mae_um": math.nan})
    assert export(done.run_id, folder) == "LSTM"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["class", "wear"])
def test_rocket_is_exported_where_it_is_best_and_another_process_predicts_the_same(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Waves whose frequency alone tells the wear: mean, spread and maximum do not, nor does a network that hardly learns."""
    rng, wear = np.random.default_rng(0), np.tile(np.linspace(20.0, 200.0, 30), 4)
    phase = rng.uniform(0, 2 * np.pi, (120, 1))
    waves = np.sin(phase + np.arange(64) * (0.2 + wear[:, None] / 100)) + rng.normal(0, 0.05, (120, 64))
    groups, cuts = np.repeat(["c1", "c2", "c3", "c4"], 30), np.tile(np.arange(1, 31), 4)
    np.savez(workplace.folder / "waves.npz", X=waves[..., None], wear=wear, groups=groups, cuts=cuts)
    keys = ("hidden=4", "epochs=1", "kernels=0", "lr=1e-6", "rocket_kernels=300", f"target={target}", "test_tools=c4")
    done = workplace.mltrain("train", "tool_wear", f"data_path={workplace.folder / 'waves.npz'}", *keys)
    assert done.code == 0, done.err
    evaluated = workplace.mltrain("evaluate", done.run_id, "--to", "report", timeout=300)
    assert "on the validation tools: ROCKET." in evaluated.out + evaluated.err
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    folder = workplace.folder / "model"
    assert export(done.run_id, folder) == "ROCKET"
    config = Config.load(base=json.loads((folder / "params.json").read_text()))
    split = split_of(config)
    expected: Any
    if target == "wear":
        expected = wear_baselines_of(config, split).estimates("ROCKET", split.test)
        columns = ["lower_um", "predicted_um", "upper_um"]
    else:
        fitted = baselines_of(config, split).fitted("ROCKET")
        expected = Results(split.test, np.eye(3)[fitted.predict(split.test.signals)])
        columns = [f"p({name})" for name in split.test.classes]
    np.savez(workplace.folder / "new.npz", X=waves[groups == "c4", :, None], groups=groups[groups == "c4"])
    command = ("-m", "projects.tool_wear.predict", folder, workplace.folder / "new.npz", workplace.folder / "new.csv")
    subprocess.run([sys.executable, *map(str, command)], check=True, timeout=300, cwd=ROOT)
    got = pd.read_csv(workplace.folder / "new.csv")
    np.testing.assert_allclose(got[columns], expected.predictions()[columns], rtol=1e-4)
    reported = pd.read_csv(workplace.folder / "report" / "comparison.csv")
    if target == "wear":
        mae = reported.set_index(["set", "method"]).loc[("test", "ROCKET"), "mae_um"]
        assert np.abs(got["predicted_um"] - wear[:30]).mean() == pytest.approx(mae, rel=1e-3)
    else:
        accuracy = reported.set_index("method").loc["ROCKET", "test"]
        assert np.mean(got["predicted"] == np.array(split.test.classes)[split.test.labels]) == pytest.approx(
            accuracy, abs=1e-4
        )


@pytest.fixture
def tracked(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The workplace's tracking store, for this process too."""
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    return MlflowClient(workplace.uri)


def test_the_classifier_continues_a_run_with_one_unbroken_curve(tracked: MlflowClient, tmp_path: Path) -> None:
    run_id = tracked.create_run("0").info.run_id
    ToolWearClassifier(**{**SMALL, "epochs": 2}).train(TRAIN, VAL, checkpoint_path=run_id)
    resumed = ToolWearClassifier(**SMALL)
    history = resumed.train(TRAIN, VAL, resume_from_checkpoint=run_id)
    whole = ToolWearClassifier(**SMALL)
    assert history == whole.train(TRAIN, VAL)
    assert np.array_equal(resumed.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))
    curve = sorted((point.step, point.value) for point in tracked.get_metric_history(run_id, "val/loss"))
    assert curve == list(zip((int(step) for step in history["step"]), history["val/loss"], strict=True))

    loaded = ToolWearClassifier(device="cpu")
    assert loaded.load_checkpoint(run_id).epoch == 4
    assert np.array_equal(loaded.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))


def test_a_run_of_the_command_line_predicts_in_python(tracked: MlflowClient, workplace: Workplace) -> None:
    done = workplace.mltrain(*TINY)
    classifier = ToolWearClassifier(device="cpu")
    epoch, best_epoch, _ = classifier.load_checkpoint(done.run_id)
    assert epoch == 4
    assert 1 <= best_epoch <= 4
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.predict(np.zeros((2, 16, 7))).shape == (2,)


@pytest.mark.slow
def test_an_unseen_tool_is_classified_as_well_as_documented(workplace: Workplace) -> None:
    """The reference: at least 0.85 on a generated tool that neither trained the network nor chose its best epoch."""
    done = workplace.mltrain("train", "tool_wear", "num_threads=1", timeout=600)
    assert done.code == 0, done.err
    metrics = workplace.mltrain("evaluate", done.run_id, "--to", "report", "--json").json["metrics"]
    assert metrics["test/accuracy"] >= 0.85
    assert metrics["val/accuracy"] >= 0.85
    assert metrics["test/accuracy"] > metrics["test/accuracy_majority"] + 0.25
