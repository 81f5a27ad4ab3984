"""A pipeline as a user runs it: what is done, what is skipped and why, and what the runs say of it afterwards."""

import json
import signal

import pytest

from tests.support.example_pipelines import STAGES, TinyPipeline
from tests.support.folders import flip


def test_every_stage_is_a_run_under_one_run_that_is_finished(tiny: TinyPipeline) -> None:
    done = tiny("--mode", "resume")
    assert done.code == 0, done.err
    parent = done.run_id
    assert tiny.parents() == [parent]
    children = {
        run.data.tags["mltrain.stage"]: run for run in tiny.client.search_runs(["0"]) if run.info.run_id != parent
    }
    assert sorted(children) == sorted(STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent}
    assert set(tiny.runs().values()) == {"FINISHED"}
    made = tiny.artifacts(children["numbers"].info.run_id) / "output" / "a01"
    assert sorted(path.name for path in made.rglob("*") if path.is_file()) == [
        *("about.json", "numbers.safetensors", "output.json")
    ]
    assert children["numbers"].data.metrics["items"] == 44
    assert tiny.states() == ["done"] * 3


def test_what_is_done_and_unchanged_is_skipped_and_the_reason_is_printed(tiny: TinyPipeline) -> None:
    first = tiny("--mode", "skip")
    again = tiny("--mode", "skip")
    assert again.run_id == first.run_id
    assert again.out.count("skip (finished, and its output is intact)") == 3
    assert tiny.actions("--mode", "resume") == dict.fromkeys(STAGES, "skip")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("numbers.scale=2", ["run", "run", "run"]),
        ("first.lr=0.02", ["skip", "run", "run"]),
        ("second.lr=0.02", ["skip", "skip", "run"]),
        ("max_to_keep=2", ["skip", "skip", "skip"]),
        ("seed=1", ["run", "run", "run"]),
    ],
)
def test_after_one_key_is_changed_only_what_depends_on_it_is_run(
    key: str, expected: list[str], tiny: TinyPipeline
) -> None:
    assert set(tiny.actions("--mode", "resume", "epochs=1").values()) == {"run"}
    assert tiny.status(key)["numbers"]["next"] == expected[0]
    assert list(tiny.actions("--mode", "skip", key).values()) == expected
    assert list(tiny.actions("--mode", "skip").values()) == ["skip"] * 3  # what was asked for last is remembered


def test_a_change_taken_back_finds_the_earlier_runs_again(tiny: TinyPipeline) -> None:
    before = {stage: tiny.run_of(stage) for stage in STAGES} if tiny.actions("--mode", "skip", "epochs=1") else {}
    tiny.actions("--mode", "skip", "first.lr=0.02")
    assert tiny.run_of("first") != before["first"]
    assert set(tiny.actions("--mode", "skip", "first.lr=0.01").values()) == {"skip"}
    assert {stage: tiny.run_of(stage) for stage in STAGES} == before


def test_other_code_means_a_new_run_where_skipping_and_a_warning_where_resuming(tiny: TinyPipeline) -> None:
    tiny.actions("--mode", "resume", "epochs=1")
    code = tiny.workplace.folder / "tiny_pipeline.py"
    code.write_text(code.read_text() + "\n# changed\n")
    done = tiny("--mode", "resume")
    assert done.out.count("skip (finished, and its output is intact; changed since: other code)") == 3
    assert tiny.states() == ["out of date"] * 3
    # The numbers are made anew and are the same, but the networks' own code has changed as well.
    assert tiny.actions("--mode", "skip") == dict.fromkeys(STAGES, "run")


def test_a_model_of_which_no_checkpoint_is_intact_is_trained_anew(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip").code == 0
    for file in tiny.artifacts(tiny.run_of("first")).rglob("model.safetensors"):
        flip(file)
    assert list(tiny.actions("--mode", "resume").values()) == ["skip", "run", "skip"]


def test_the_pipeline_goes_on_on_another_machine_with_nothing_but_the_store(tiny: TinyPipeline) -> None:
    stopped = tiny("--mode", "resume", "second.signal_at=8")
    assert stopped.code == 75, stopped.err
    elsewhere = tiny.elsewhere()
    assert elsewhere.actions("--mode", "resume", "second.signal_at=0") == {
        **dict.fromkeys(STAGES, "skip"),
        "second": "resume",
    }
    assert set(tiny.runs().values()) == {"FINISHED"}
    home = elsewhere.workplace.folder / "home"
    assert list(home.rglob("numbers.safetensors"))  # received, for there was nothing


def test_a_run_killed_before_it_had_recorded_anything_is_begun_again_and_not_left_behind(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "resume", "numbers.kill=before").code == -9
    assert tiny("--mode", "resume", "numbers.kill=never", "first.kill_at=1").code == -9
    for stage in STAGES[:2]:
        run = tiny.run_of(stage)
        (tiny.artifacts(run) / "config.json").unlink()
        for name in ("output", "checkpoints"):
            if stage == "numbers" and (tiny.artifacts(run) / name).exists():
                (tiny.artifacts(run) / name / "a02" / "output.json").unlink()
    assert tiny.actions("--mode", "resume", "first.kill_at=0") == {**dict.fromkeys(STAGES, "resume"), "second": "run"}
    assert len(tiny.runs()) == 4
    assert set(tiny.runs().values()) == {"FINISHED"}
    assert json.loads((tiny.artifacts(tiny.run_of("first")) / "config.json").read_text())["config"]["lr"] == 0.01


def test_a_failure_closes_both_runs_as_failed_and_what_is_done_stays(tiny: TinyPipeline) -> None:
    failed = tiny("--mode", "resume", "first.raise_at=8")
    assert failed.code == 1
    assert sorted(tiny.runs().values()) == ["FAILED", "FAILED", "FINISHED"]
    assert tiny.states() == ["done", "failed", "missing"]
    assert tiny.actions("--mode", "resume", "first.raise_at=0") == {
        "numbers": "skip",
        "first": "resume",
        "second": "run",
    }


def test_a_stop_inside_a_stage_is_that_of_a_training(tiny: TinyPipeline) -> None:
    stopped = tiny("--mode", "resume", "first.signal_at=8")
    assert stopped.code == 75
    assert tiny.states() == ["done", "stopped", "missing"]
    assert sorted(tiny.runs().values()) == ["FINISHED", "KILLED", "KILLED"]
    assert tiny("--mode", "resume", "first.signal_at=0").code == 0


def test_a_training_given_by_hand_takes_the_place_of_a_stage_and_is_never_cleared(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    given = tiny.run_of("first")
    folder = next((tiny.workplace.folder / "home").rglob("numbers.safetensors")).parent.parent
    own = tiny.workplace.mltrain("train", "tiny_pipeline.py:first", f"numbers={folder}", "lr=0.05", "epochs=1")
    assert own.code == 0, own.err
    assert tiny.actions("--mode", "skip", "--use", f"first={own.run_id}") == {
        **dict.fromkeys(STAGES, "skip"),
        "second": "run",
    }
    assert tiny.status()["first"]["state"] == "given"
    assert tiny("--mode", "scratch", "--yes").code == 0  # which asks for its own first stage again
    runs = tiny.runs()
    assert own.run_id in runs
    assert given not in runs


def test_one_stage_is_retrained_and_the_others_are_left_alone(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    before = {stage: tiny.run_of(stage) for stage in STAGES}
    assert tiny.actions("--stage", "first", "--yes", "seed=5") == {"first": "run"}
    assert before["first"] not in tiny.runs()
    assert tiny.run_of("numbers") == before["numbers"]
    assert tiny.states() == ["done", "done", "out of date"]


def test_from_a_stage_on_everything_that_builds_on_it_is_run_anew(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    assert list(tiny.actions("--from", "first", "--yes").values()) == ["skip", "run", "run"]
    assert len(tiny.runs()) == 4


def test_resuming_by_the_id_of_the_pipeline_or_of_a_stage_does_what_one_expects(tiny: TinyPipeline) -> None:
    parent = tiny("--mode", "resume", "first.signal_at=8").run_id
    stage = tiny.run_of("first")
    elsewhere = tiny.elsewhere()
    alone = elsewhere.workplace.mltrain("train", "--resume-run", stage, "signal_at=0")
    assert alone.code == 0, alone.err
    assert tiny.states() == ["done", "done", "missing"]
    whole = elsewhere.workplace.mltrain("train", "--resume-run", parent, "signal_at=0")
    assert whole.code == 0, whole.err
    assert "[2/3] first: skip" in whole.out
    assert tiny.states() == ["done"] * 3
    by_stage = tiny.workplace.mltrain("pipeline", "--run", stage, "--mode", "skip")
    assert by_stage.run_id == parent


def test_a_stage_is_evaluated_on_another_machine(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    done = tiny.elsewhere().workplace.mltrain("evaluate", tiny.run_of("second"), "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["val/loss"] == tiny.status()["second"]["best"]


def test_a_pipeline_run_of_one_s_own_can_stand_beside_another(tiny: TinyPipeline) -> None:
    first = tiny("--mode", "skip", "epochs=1").run_id
    second = tiny("--mode", "skip", "epochs=1", "--run", "new").run_id
    assert first != second
    assert tiny("--mode", "skip").run_id == second
    assert tiny("--mode", "skip", "--run", first).run_id == first


def test_a_second_process_on_the_same_pipeline_is_refused(tiny: TinyPipeline) -> None:
    started = tiny.start("--mode", "resume", "first.epochs=1000", "first.sleep=0.2")
    started.until("Training on")
    assert tiny("--mode", "resume").code == 4
    assert tiny.states() == ["done", "running", "missing"]
    started.child.kill(signal.SIGTERM)
    assert started.wait().code == 75


def test_a_stage_that_lacks_what_it_needs_keeps_its_output(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    before = tiny.run_of("second")
    flip(tiny.artifacts(tiny.run_of("numbers")) / "output/a01/about.json")
    done = tiny("--stage", "second", "--yes")
    assert done.code == 2
    assert "needs numbers (damaged)" in done.err
    assert before in tiny.runs()
    assert set(tiny.runs().values()) == {"FINISHED"}


def test_a_pipeline_is_found_again_in_its_own_experiment_and_in_mlflows(tiny: TinyPipeline) -> None:
    own = tiny.workplace.mltrain("pipeline", "tiny_pipeline.py", "--mode", "skip", "epochs=1", MLFLOW_EXPERIMENT_ID="")
    assert own.code == 0, own.err
    client = tiny.client
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert own.run_id in {run.info.run_id for run in runs}
    assert len(runs) == 1 + len(STAGES)
    again = tiny.workplace.mltrain("pipeline", "tiny_pipeline.py", "--mode", "skip", MLFLOW_EXPERIMENT_ID="")
    assert again.run_id == own.run_id
    assert again.out.count(": skip (") == len(STAGES)
    launched = tiny("--mode", "skip", "epochs=1").run_id  # where mlflow run makes its runs
    assert launched != own.run_id
    newest = tiny.workplace.mltrain("pipeline", "tiny_pipeline.py", "--mode", "skip", MLFLOW_EXPERIMENT_ID="")
    assert newest.run_id == launched
