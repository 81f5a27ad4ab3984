"""The promise of the whole: a training that was killed and resumed cannot be told from one that was not."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.commands.result import Display
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.delivery.images import ui_identity
from mltrain.delivery.journal import Journal
from mltrain.ownership.attempts import recorded_config
from mltrain.run.tracked import TrackedRun
from tests.support import tiny
from tests.support.database import use_database
from tests.support.equality import identical
from tests.support.workplace import Workplace


@pytest.mark.parametrize("kill_at", [3, 9])
def test_a_killed_training_ends_bit_identical_after_a_resume(
    kill_at: int, workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    killed = workplace.mltrain("train", "tiny.py", f"kill_at={kill_at}", "save_every_steps=2")
    assert killed.code == -9, killed.err
    resumed = workplace.mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    assert resumed.run_id == killed.run_id

    reference, run_id = undisturbed
    expected, got = reference.weights(run_id), workplace.weights(killed.run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()
    assert workplace.points(killed.run_id) == reference.points(run_id)


def test_a_resume_needs_nothing_but_the_tracking_store(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    stopped = workplace.mltrain("train", "tiny.py", "signal_at=8")
    assert stopped.code == 75, stopped.err
    other = workplace.elsewhere("another-machine")
    resumed = other.mltrain("train", "tiny.py", "--resume-run", stopped.run_id)
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    assert other.points(stopped.run_id) == reference.points(run_id)
    assert [run.info.status for run in MlflowClient(workplace.uri).search_runs(["0"])] == ["FINISHED"]


@pytest.mark.parametrize("how", ["missing", "one bit"])
def test_a_damaged_configuration_of_the_newest_checkpoint_costs_no_more_than_that_one(
    how: str, workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=2").run_id
    file = max((workplace.folder / "mlruns" / "0" / run_id).glob("artifacts/checkpoints/*/params.json"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if how == "one bit":
        file.write_bytes(content)
    assert workplace.mltrain("evaluate", run_id, "--checkpoint", "latest").code == 0
    resumed = workplace.mltrain("train", "--resume-run", run_id, "epochs=4")
    assert resumed.code == 0, resumed.err
    assert f"{file.parent.name} is damaged" in resumed.err
    reference, straight = undisturbed
    assert workplace.points(run_id) == reference.points(straight)


def test_more_epochs_continue_the_same_run(workplace: Workplace, undisturbed: tuple[Workplace, str]) -> None:
    short = workplace.mltrain("train", "tiny.py", "epochs=2")
    longer = workplace.mltrain("train", "--resume-run", short.run_id, "epochs=4")
    assert longer.code == 0, longer.err
    reference, run_id = undisturbed
    assert workplace.points(short.run_id) == reference.points(run_id)


def test_a_run_killed_before_its_first_commit_starts_at_step_0_in_the_same_run(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    killed = workplace.mltrain("train", "tiny.py", "kill_at=2")
    assert killed.code == -9
    resumed = workplace.mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
    assert (resumed.code, resumed.run_id) == (0, killed.run_id), resumed.err
    assert "step 0" in resumed.err
    reference, run_id = undisturbed
    assert workplace.points(killed.run_id) == reference.points(run_id)


def test_what_a_dead_attempt_left_unsent_is_not_sent_beside_what_is_computed_again(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    killed = workplace.mltrain("train", "tiny.py", "kill_at=8")
    (path,) = (workplace.folder / "home").glob(f"*/{killed.run_id}/journal.sqlite")
    journal = Journal(path, 1)
    journal.log_metrics({"step/loss": 9.0, "step/draw": 9.0}, 7, 1)
    journal.close()
    resumed = workplace.mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    assert workplace.points(killed.run_id) == reference.points(run_id)


@pytest.mark.parametrize(("which", "step"), [("epoch:2", 12), ("step:6", 6), ("best", None)])
def test_a_resume_can_begin_at_an_earlier_checkpoint(which: str, step: int | None, workplace: Workplace) -> None:
    first = workplace.mltrain("train", "tiny.py")
    again = workplace.mltrain("train", "--resume-run", first.run_id, "--resume-from", which)
    assert again.code == 0, again.err
    rows = workplace.mltrain("checkpoints", first.run_id, "--json").json
    newest = rows[-1]
    assert newest["attempt"] == 2 or which == "best"
    if step is not None:
        assert f"step-{step:09d}-a01" in again.out


def test_a_path_in_the_configuration_is_found_from_anywhere(workplace: Workplace) -> None:
    (workplace.folder / "somewhere").mkdir()
    (workplace.folder / "somewhere" / "file").write_text("data")
    done = workplace.mltrain("train", "tiny.py", "epochs=1", "data=somewhere")
    assert done.code == 0, done.err
    params = MlflowClient(workplace.uri).get_run(done.run_id).data.params
    assert params["data"] == str(workplace.folder / "somewhere")
    assert Path(params["data"]).is_absolute()


def test_who_has_read_the_id_can_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_database(monkeypatch, tmp_path)
    recorded = []

    class Told(Display):
        def opened(self, run: TrackedRun, where: str) -> None:
            recorded.append(recorded_config(run.artifacts)["config"]["hidden"])

    outcome = run_training(Request(project=tiny.__file__, overrides={"epochs": 1, "hidden": 5}), Told())
    assert (outcome.exit_code, recorded) == (0, [5])


ODD_NAMES = """
from dataclasses import replace
from pathlib import Path
import os, signal
import mltrain, numpy as np
from tests.support import tiny

class Config(tiny.Config):
    weights: dict[str, float] = {"dice (liver)": 1.0}
    marker: str = ""

def build(config):
    task = tiny.build(config)
    def evaluate():
        return {**task.evaluate(), "val/F1@0.5": 0.5, "val/F1#0.5": 0.25, "/val//x": 1.0, "x" * 300: 2.0, "a\\nb": 3.0}
    epochs = []
    def images():
        epochs.append(0)
        if config.marker and len(epochs) == 2 and not Path(config.marker).exists():
            Path(config.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"scan (liver)": np.random.rand(8, 8, 3), "wrong": "no such file.png"}
    return replace(task, evaluate=evaluate, images=images)
"""


def test_names_that_mlflow_refuses_cost_no_point_no_picture_and_no_checkpoint(workplace: Workplace) -> None:
    (workplace.folder / "odd.py").write_text(ODD_NAMES)
    marker = workplace.folder / "killed"
    killed = workplace.mltrain("train", "odd.py", f"marker={marker}", "best_metric=val/F1@0.5", "best_mode=max")
    assert (killed.code, marker.exists()) == (-9, True), killed.err
    done = workplace.mltrain("train", "--resume-run", killed.run_id)
    assert done.code == 0, done.err
    client = MlflowClient(workplace.uri)
    points = workplace.points(done.run_id)
    expected = {"val/F1_0.5": 0.5, "val/x": 1.0, "a_b": 3.0}
    assert {key: points[key] for key in expected} == {
        key: [(step, value) for step in (6, 12, 18, 24)] for key, value in expected.items()
    }
    assert sum(key.startswith("val/F1_0.5-") for key in points) == 1
    assert sum(key.startswith("x" * 200) for key in points) == 1
    assert client.get_run(done.run_id).data.params["weights.dice _liver_"] == "1.0"
    pictures = [file.path for file in client.list_artifacts(done.run_id, "images") if file.path.endswith(".png")]
    shown = [(found[0], found[1]) for path in pictures if (found := ui_identity(path.removeprefix("images/")))]
    assert sorted(shown) == [("scan _liver_", step) for step in (6, 12, 18, 24)], "once each, that of the kill included"
    assert "The picture wrong of epoch 1 is skipped" in killed.err
    assert "mltrain sync" not in done.out
    assert "Sent" not in workplace.mltrain("sync").out
    checkpoints = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert all(one["metrics"]["val/F1@0.5"] == 0.5 and one["metrics"]["x" * 300] == 2.0 for one in checkpoints)
    for name in ("val/F1@0.5", "val/F1_0.5"):
        pulled = workplace.mltrain("pull", "--experiment", "Default", "--metric", name, "--mode", "max", "--to", "m")
        assert pulled.code == 0, pulled.err


FAILS_ONCE = """
from dataclasses import replace
import os
from tests.support import tiny
from tests.support.tiny import Config

def build(config):
    task, calls = tiny.build(config), []
    def evaluate():
        calls.append(0)
        if len(calls) == 2 and "FAIL" in os.environ:
            raise RuntimeError("a mistake in the evaluation")
        return task.evaluate()
    return replace(task, evaluate=evaluate)
"""


def test_a_resume_after_an_evaluation_that_raised_begins_with_that_evaluation(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    (workplace.folder / "fails.py").write_text(FAILS_ONCE)
    failed = workplace.mltrain("train", "fails.py", FAIL="1")
    assert failed.code == 1, failed.err
    assert "a mistake in the evaluation" in failed.err
    checkpoints = workplace.mltrain("checkpoints", failed.run_id, "--json").json
    assert [(one["step"], one["kind"]) for one in checkpoints] == [(6, "epoch"), (12, "step")]
    resumed = workplace.mltrain("train", "--resume-run", failed.run_id)
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    expected, got = reference.weights(run_id), workplace.weights(failed.run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()
    assert workplace.points(failed.run_id) == reference.points(run_id)


def test_a_training_whose_weights_are_not_finite_at_the_end_is_failed(workplace: Workplace) -> None:
    (workplace.folder / "corrupts.py").write_text(CORRUPTS)
    done = workplace.mltrain("train", "corrupts.py", "epochs=2")
    assert done.code == 7, done.err
    client = MlflowClient(workplace.uri)
    assert client.get_run(done.run_id).info.status == "FAILED"
    checkpoints = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert [one["step"] for one in checkpoints] == [6]


CORRUPTS = """
from dataclasses import replace
import torch
from tests.support import tiny
from tests.support.tiny import Config

def build(config):
    task = tiny.build(config)
    class OwnStep:
        calls = 0
        def parts(self):
            return task.step.inner.parts()
        def __call__(self, batch):
            task.step.inner(batch)
            self.calls += 1
            if self.calls == 12:
                with torch.no_grad():
                    task.step.inner.model[0].weight.fill_(float("nan"))
            return {"loss": 1.0}
    return replace(task, step=OwnStep(), evaluate=lambda: {"val/loss": 1.0}, images=None)
"""

ON_A_PLATEAU = """
from dataclasses import replace
import torch, mltrain
from tests.support import tiny
from tests.support.tiny import Config

def build(config):
    task = tiny.build(config)
    inner = task.step.inner
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(inner.optimizer, mode="max")
    return replace(task, step=mltrain.Supervised(inner.model, inner.loss, inner.optimizer, scheduler=schedule))
"""


def test_a_schedule_that_cannot_follow_its_metric_leaves_no_run_behind(workplace: Workplace) -> None:
    (workplace.folder / "plateau.py").write_text(ON_A_PLATEAU)
    refused = workplace.mltrain("train", "plateau.py")
    assert (refused.code, "mode='min'" in refused.err) == (2, True), refused.err
    assert MlflowClient(workplace.uri).search_runs(["0"]) == []
