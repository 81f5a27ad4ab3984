"""``mlflow run`` as a user types it: a training adopts the launcher's run, a resume leaves one visible run."""

import os
import signal

import pytest
from mlflow import MlflowClient

from tests.support.launched import CHECKOUT, mlflow_run, visible
from tests.support.waiting import eventually
from tests.support.workplace import Workplace


@pytest.mark.slow
def test_a_training_and_its_resume_are_one_visible_run(workplace: Workplace) -> None:
    first = mlflow_run(workplace, "project=tests/support/tiny.py", "epochs=2", "lr=1e-3")
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 0, said
    (run_id,) = visible(workplace, 1)
    assert f"run_id={run_id}" in said
    resumed = mlflow_run(workplace, f"resume_run={run_id}", "epochs=4")
    said = resumed.communicate(timeout=120)[0]
    assert resumed.returncode == 0, said
    assert visible(workplace, 1) == {run_id: "FINISHED"}
    run = MlflowClient(workplace.uri).get_run(run_id)
    assert run.data.metrics["epoch"] == 4
    assert run.data.params["lr"] == "1e-3"  # as the launcher logged it; the typed value is in config.json


@pytest.mark.slow
def test_two_processes_are_one_run_that_any_number_resumes(workplace: Workplace) -> None:
    first = mlflow_run(workplace, "project=tests/support/tiny.py", "epochs=1", "processes=2")
    said = first.communicate(timeout=200)[0]
    assert first.returncode == 0, said
    (run_id,) = visible(workplace, 1)
    resumed = mlflow_run(workplace, f"resume_run={run_id}", "epochs=2", "processes=2")
    said = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, said
    assert said.count(f"run_id={run_id}") == 1  # one display for both
    assert visible(workplace, 1) == {run_id: "FINISHED"}
    assert workplace.points(run_id)["epoch"] == [(6, 1.0), (12, 2.0)]
    refused = mlflow_run(workplace, f"resume_run={run_id}", "epochs=3", "processes=0")
    said = refused.communicate(timeout=200)[0]
    assert refused.returncode != 0
    assert "processes='0' is not a valid number for this machine" in said


@pytest.mark.faults
def test_ctrl_c_at_the_launcher_leaves_a_killed_run_that_resumes(workplace: Workplace) -> None:
    started = mlflow_run(workplace, "project=tests/support/tiny.py", "epochs=1000", "sleep=0.1", "save_interval=0")
    assert started.stdout is not None
    while "epoch " not in (line := started.stdout.readline()) or "/1000" not in line:
        assert line, "the launcher ended before the first epoch"
    os.killpg(started.pid, signal.SIGINT)  # what a terminal sends: to the whole group
    said = started.communicate(timeout=60)[0]
    (run_id,) = visible(workplace, 1)
    assert "stopped by SIGINT" in said
    eventually(lambda: visible(workplace, 1)[run_id] == "KILLED", "a run that is KILLED")
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert rows[-1]["kind"] in ("interrupted", "epoch")  # an epoch, where the stop fell on the end of one


@pytest.mark.faults
def test_the_death_of_the_launcher_is_a_request_to_stop(workplace: Workplace) -> None:
    started = mlflow_run(workplace, "project=tests/support/tiny.py", "epochs=1000", "sleep=0.1", "save_interval=0")
    assert started.stdout is not None
    while "/1000" not in (line := started.stdout.readline()):
        assert line, "the launcher ended before the first epoch"
    started.kill()
    said = started.communicate(timeout=60)[0]
    assert "stopped by the launcher's death" in said
    assert set(visible(workplace, 1).values()) == {"KILLED"}


SMALLEST = [
    *("preset=quick", "preparation.cases=4", "preparation.frames=4", "epochs=1", "motion.passes=1", "device=cpu"),
    "num_threads=1",
]


@pytest.mark.slow
def test_the_cardiac_pipeline_and_its_resume_are_one_visible_run_with_four_under_it(workplace: Workplace) -> None:
    first = mlflow_run(workplace, *SMALLEST, entry_point="cardiac")
    said = first.communicate(timeout=200)[0]
    assert first.returncode == 0, said
    runs = visible(workplace, 5)
    assert set(runs.values()) == {"FINISHED"}
    parent = said.partition("run_id=")[2].split()[0]
    client = MlflowClient(workplace.uri)
    parents = {run_id: client.get_run(run_id).data.tags.get("mlflow.parentRunId") for run_id in runs}
    assert parents == {run_id: None if run_id == parent else parent for run_id in runs}
    resumed = mlflow_run(workplace, "run=" + parent, entry_point="cardiac")
    said = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, said
    assert said.count(": skip (finished, and its output is intact)") == 4
    assert visible(workplace, 5) == runs
    # The same by mltrain itself, with nothing but the mode.
    again = workplace.mltrain("pipeline", CHECKOUT / "projects" / "cardiac", "--mode", "resume")
    assert again.run_id == parent
    assert again.out.count(": skip (") == 4
