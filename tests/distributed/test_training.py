"""Two processes train as one: the same batches, one run, the same state after a kill as without it."""

import signal
import subprocess

import pytest
from mlflow import MlflowClient

from mltrain.tracking.tags import RESUMED_FROM_TAG
from tests.support import ranks
from tests.support.ranks import TRAIN, assert_ended_alike
from tests.support.workplace import Workplace


@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "codes"),
    [
        ("kill_at=9 victim=1", [1, -signal.SIGKILL]),
        ("kill_at=5 victim=0", [-signal.SIGKILL, 1]),
        ("signal_at=9 victim=1", [75, 75]),
        ("raise_at=9 victim=1", [1, 1]),
    ],
)
def test_a_training_that_was_stopped_on_one_rank_ends_as_if_it_had_not_been(
    how: str, codes: list[int], place: Workplace, undisturbed: str
) -> None:
    command = (*TRAIN, how.replace(" ", "-"), "epochs=2", "save_every_steps=2")
    stopped = ranks.run(place, 2, *command, *how.split())
    assert [rank.code for rank in stopped] == codes, stopped
    run = MlflowClient(place.uri).get_run(stopped[0].run_id)
    if "victim=1" in how:
        assert run.info.status == ("KILLED" if codes[0] == 75 else "FAILED")
    if "raise_at" in how:
        assert "Rank 1 ended: RuntimeError: the user's own mistake" in stopped[0].err
    if codes[0] == 75:  # in the middle of an epoch the ranks' own metrics belong to two ranks
        alone = place.mltrain(*command)
        assert alone.code == 8
        assert "Resume with 2 processes" in alone.err
    again = ranks.run(place, 2, *command)
    assert [rank.code for rank in again] == [0, 0], again
    assert again[0].run_id == stopped[0].run_id
    assert_ended_alike(place, again[0].run_id, undisturbed)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_fails_ends_while_its_peer_hangs(strategy: str, place: Workplace) -> None:
    """A collective's teardown waits half an hour for the peer."""
    command = (*TRAIN, f"hangs-{strategy}", f"strategy={strategy}", "raise_at=3", "victim=0", "hang_at=3")
    failing, hanging = ranks.start(place, 2, *command, MLTRAIN_PEER_SECONDS="1800")
    try:
        failed = failing.wait(120)
    finally:
        hanging.child.kill(signal.SIGKILL)
    assert failed.code == 1, failed.err
    assert "the user's own mistake" in failed.err
    assert place.status(failed.run_id) == "FAILED"


def test_what_two_ranks_train_is_what_one_trains(place: Workplace) -> None:
    """Without noise; the last of 41 items leaves one part empty."""
    runs, plain = {}, ("plain=true", "items=41", "save_every_steps=2")
    for name, size, more in (
        ("one", 1, ()),
        ("two", 2, ()),
        ("three", 3, ("evaluate_on=all ranks",)),
    ):
        done = ranks.run(place, size, *TRAIN, name, "epochs=2", *plain, *more)
        assert [rank.code for rank in done] == [0] * size, done
        runs[name] = place.points(done[0].run_id)
    for name in ("two", "three"):
        for key in ("step/loss", "step/grad_norm", "train/loss"):
            steps, values = zip(*runs[name][key], strict=True)
            expected_steps, expected = zip(*runs["one"][key], strict=True)
            assert steps == expected_steps
            assert values == pytest.approx(expected, rel=1e-4), (name, key)
    assert runs["two"]["val/loss"][-1][1] == pytest.approx(runs["one"]["val/loss"][-1][1], rel=1e-4)
    for name in ("two", "three"):
        assert [value for _, value in runs[name]["val/accuracy"]] == pytest.approx(
            [value for _, value in runs["one"]["val/accuracy"]]
        )
    assert {value for _, value in runs["two"]["val/rank"]} == {0.0}
    assert {value for _, value in runs["three"]["val/rank"]} == {1.0}


def test_the_number_of_ranks_may_change_in_the_middle_of_an_epoch(place: Workplace) -> None:
    command = (*TRAIN, "moved", "plain=true", "items=41", "epochs=3")
    first = ranks.run(place, 2, *command, "signal_at=4", "victim=1")
    assert [rank.code for rank in first] == [75, 75], first
    alone = place.mltrain(*command, "signal_at=9")
    assert alone.code == 75, alone.err
    assert "was written by 2 processes, and this training has 1" in alone.err
    last = ranks.run(place, 3, *command)
    assert [rank.code for rank in last] == [0, 0, 0], last
    undisturbed = place.mltrain(*TRAIN, "alone", "plain=true", "items=41", "epochs=3")
    moved, expected = (place.points(done.run_id)["step/loss"] for done in (last[0], undisturbed))
    assert [step for step, _ in moved] == [step for step, _ in expected] == list(range(1, 19))
    assert [loss for _, loss in moved] == pytest.approx([loss for _, loss in expected], rel=1e-4)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("raise mltrain.errors.DataError('no file')", 2),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        pytest.param("os.kill(os.getpid(), signal.SIGINT)", 130, marks=pytest.mark.slow),
    ],
)
def test_what_ends_one_rank_before_the_run_ends_all_with_its_code(fault: str, code: int, place: Workplace) -> None:
    (place.folder / "faulty.py").write_text(
        "import os, signal, mltrain.errors, ranked\nConfig = ranked.Config\n"
        f"def build(config):\n    if os.environ['RANK'] == '1':\n        {fault}\n    return ranked.build(config)\n"
    )
    done = ranks.run(place, 2, "train", "faulty.py")
    assert [rank.code for rank in done] == [code, code], done


@pytest.mark.slow
def test_torchrun_restarts_killed_workers_in_the_same_run(place: Workplace, undisturbed: str) -> None:
    torchrun = ranks.torchrun(2, "--max-restarts", "2")
    command = [*torchrun, "-m", "mltrain", *TRAIN, "auto", "epochs=2", "save_every_steps=2", "kill_at=9", "victim=1"]
    done = subprocess.run(
        command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    named = {line for line in done.stdout.splitlines() if line.startswith("run_id=")}
    assert len(named) == 1, named
    run_id = named.pop().removeprefix("run_id=")
    assert_ended_alike(place, run_id, undisturbed)
    run = MlflowClient(place.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    # torchrun has sent SIGTERM to rank 0, which could not ask rank 1 any more: what it had staged was committed
    assert run.data.tags[RESUMED_FROM_TAG] == "step-000000008-a01"


def test_a_model_that_differs_between_ranks_is_not_saved(place: Workplace) -> None:
    done = ranks.run(place, 2, *TRAIN, "drift", "epochs=1", "plain=true", "drift=true")
    assert [rank.code for rank in done] == [8, 8]
    assert "'model' is not the same on rank 1 as on rank 0" in done[0].err
    assert place.checkpoint_names(done[0].run_id) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("on_nonfinite=rollback",), "on_nonfinite=rollback works with one process only"),
        (("save_every_minutes=5",), "Try: save_every_steps=N"),
        (("batch_size=1",), "batch_size=1 is shared by 2 processes"),
        (("lr=none-such",), "lr"),
        (("strategy=fsdp", "logged_models=best"), "logged_models=best needs the whole model"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_on_all_before_there_is_a_run(
    words: tuple[str, ...], message: str, place: Workplace
) -> None:
    client = MlflowClient(place.uri)
    before = len(client.search_runs(["0"]))
    done = ranks.run(place, 2, "train", "ranked.py", *words)
    assert [rank.code for rank in done] == [2, 2], done
    assert message in done[0].err
    assert "timed out" not in done[0].err, "rank 0 waited for a rank that knows the reason"
    assert not done[1].err
    assert len(client.search_runs(["0"])) == before
