"""Commands over many runs: all of them are seen, and one that cannot be used stands in nobody's way."""

import logging
import os
import signal
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mltrain import CheckpointManager
from mltrain.checkpoint import codec, publishing
from mltrain.cli.prune import prune
from mltrain.commands.compare import compared
from mltrain.commands.prune import Rules, plan_experiment
from mltrain.commands.pull import best_run, load_best, pull, refuse_folder
from mltrain.errors import NoCheckpoint, StorageError, UsageError
from mltrain.store.removal import mark_in_use
from mltrain.tracking.client import TrackingClient
from tests.support.database import MORE_THAN_A_PAGE, many
from tests.support.forked import killed


def trained(loss: float) -> str:
    with CheckpointManager() as manager:
        state = {"model": {"weight": torch.full((2,), loss)}, "epoch": 1}
        manager.save_epoch_checkpoint(state, 1, {"val/loss": loss})
    return manager.run.id


def test_the_best_of_an_experiment_is_found_behind_a_thousand_newer_runs(
    server: TrackingClient, tmp_path: Path
) -> None:
    best = trained(1.0)
    many(tmp_path, MORE_THAN_A_PAGE, {})
    assert best_run(server, "Default", None, None) == best


def test_runs_whose_artifacts_cannot_be_used_are_named_and_left_aside(
    server: TrackingClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best, other = trained(1.0), trained(2.0)
    wrong = [
        *many(tmp_path, 1, {"mltrain.status": "finished"}, "nothing://known/{run}"),
        *many(tmp_path, 1, {"mltrain.status": "finished", "mltrain.latest": "step-000000001-a01"}),
        *many(tmp_path, 1, {"mltrain.status": "finished"}, "mlflow-artifacts:/0/{run}/artifacts"),
    ]
    with caplog.at_level(logging.WARNING):
        assert pull(experiment="Default", to=tmp_path / "model").run_id == best
    assert all(run_id in caplog.text for run_id in wrong)
    plans = {plan.run_id: plan.left_alone for plan in plan_experiment(server, "Default", Rules(best_runs=1))}
    assert [plans[run_id] for run_id in (best, other)] == [None, None]
    assert all(plans[run_id] is not None for run_id in wrong)
    assert compared(server, [best, *wrong]).best["epoch"] == [1, None, None, None]


def test_where_no_run_can_be_read_that_is_an_error_of_the_store(server: TrackingClient, tmp_path: Path) -> None:
    many(tmp_path, 2, {}, "nothing://known/{run}")
    with pytest.raises(StorageError, match="nothing://known"):
        best_run(server, "Default", None, None)
    many(tmp_path, 1, {"mltrain.status": "finished"}, "nothing://known/{run}")
    with pytest.raises(SystemExit) as ended:
        prune(None, "Default", None, None, None, dry_run=True, yes=False, as_json=False)
    assert ended.value.code == StorageError.exit_code


def test_a_large_model_is_pulled_file_by_file_and_replaces_the_former_one_whole(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "encode", lambda snapshot, largest_file: codec.encode(snapshot, largest_file=2**20))
    with CheckpointManager(metric="loss") as manager:
        for epoch in (1, 2):
            weights = {str(number): torch.full((2**18,), float(epoch)) for number in range(8)}  # 1 MB each
            manager.save_epoch_checkpoint({"model": weights, "epoch": epoch}, epoch, {"loss": -epoch})
    to, artifacts = tmp_path / "model", manager.run.artifacts.local_root
    assert artifacts is not None

    def pulled() -> set[bytes]:
        pull(manager.run.id, to=to)
        assert len(list(to.iterdir())) == 9  # with the manifest, and nothing temporary
        return {file.read_bytes()[-4:] for file in to.glob("model-*.safetensors")}

    of_epoch = {epoch: {torch.tensor(float(epoch)).numpy().tobytes()} for epoch in (1, 2)}
    assert pulled() == of_epoch[2]
    tracemalloc.start()
    pull(manager.run.id, to=to)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * 2**20  # of 8

    first, second = sorted((artifacts / "checkpoints").iterdir())
    (second / "model-00007-of-00008.safetensors").write_bytes(b"damaged")
    assert pulled() == of_epoch[1]
    (first / "model-00007-of-00008.safetensors").unlink()
    with pytest.raises(NoCheckpoint, match="None of the 2 matching checkpoints"):
        pull(manager.run.id, to=to)
    assert {file.read_bytes()[-4:] for file in to.glob("model-*.safetensors")} == of_epoch[1]
    assert len(list(to.iterdir())) == 9


@pytest.mark.parametrize("name", ["params.json", "history.csv", "manifest.json", "model.safetensors"])
def test_a_pull_replaces_the_files_of_an_earlier_one_and_of_nobody_else(
    name: str, server: TrackingClient, tmp_path: Path
) -> None:
    run_id, theirs = trained(1.0), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_text('{"name": "of somebody else"}')
    with pytest.raises(UsageError, match=f"no manifest of an earlier pull: {name}"):
        pull(run_id, to=theirs)
    assert [file.read_text() for file in theirs.iterdir()] == ['{"name": "of somebody else"}']
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("stays")
    for run in (run_id, trained(2.0)):
        assert pull(run, to=tmp_path / "model").run_id == run
    assert (tmp_path / "model" / "notes.txt").read_text() == "stays"


@pytest.mark.parametrize("renames", [1, 2])
def test_the_next_pull_finishes_one_that_was_killed_between_its_renames(
    renames: int, server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "encode", lambda snapshot, largest_file: codec.encode(snapshot, largest_file=2**20))

    def in_files(value: float) -> str:
        with CheckpointManager() as manager:
            weights = {str(number): torch.full((2**18,), value) for number in range(3)}  # 1 MB each
            manager.save_epoch_checkpoint({"model": weights, "epoch": 1}, 1, {"val/loss": value})
        return manager.run.id

    run_id, other, to = in_files(1.0), in_files(2.0), tmp_path / "model"

    def pull_and_die(run: str) -> None:
        rename, left = Path.replace, iter(range(renames))

        def dying(file: Path, target: Path) -> Path:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(file, target)

        monkeypatch.setattr(Path, "replace", dying)
        pull(run, to=to)

    killed(lambda: pull_and_die(run_id))
    assert len([file for file in to.iterdir() if not file.name.startswith(".")]) == renames
    killed(lambda: pull_and_die(other))  # recognises the files, and leaves some of both
    pull(run_id, to=to)
    names = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    assert {file.name for file in to.iterdir()} == {"manifest.json", *names}
    assert {load_file(file)[key].mean().item() for file in to.glob("model-*") for key in load_file(file)} == {1.0}


def test_the_next_pull_removes_what_one_that_was_killed_in_a_download_left(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, to = trained(1.0), tmp_path / "model"
    to.mkdir()
    theirs = {".model.safetensors.swp", ".params.json.unsaved1.tmp", ".notes.txt.0123abcd.tmp", "model.tmp"}
    for name in theirs:
        (to / name).write_text("of somebody else")

    def pull_and_die() -> None:
        monkeypatch.setattr("mltrain.commands.pull.write_file", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        pull(run_id, to=to)

    killed(pull_and_die)
    killed(pull_and_die)
    assert len({file.name for file in to.iterdir()} - theirs) == 1, "of the second one only"
    with (to / ".params.json.0123abcd.tmp").open("xb") as of_a_live_pull:
        mark_in_use(of_a_live_pull)
        pull(run_id, to=to)
        present = {"manifest.json", "model.safetensors", *theirs}
        assert {file.name for file in to.iterdir()} == {*present, ".params.json.0123abcd.tmp"}
    pull(run_id, to=to)
    assert {file.name for file in to.iterdir()} == present


def test_a_pull_lets_another_one_into_the_same_folder_finish(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, to = trained(1.0), tmp_path / "model"
    rename, others = Path.replace, iter([trained(2.0)])

    def overtaken(file: Path, target: Path) -> Path:
        for other in others:
            pull(other, to=to)
        return rename(file, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    assert pull(run_id, to=to).run_id == run_id
    assert {file.name for file in to.iterdir()} == {"manifest.json", "model.safetensors"}
    assert load_file(to / "model.safetensors")["weight"].tolist() == [1.0, 1.0]


def test_an_error_of_the_callers_function_ends_a_pull_and_leaves_the_folder_as_it_was(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "encode", lambda snapshot, largest_file: codec.encode(snapshot, largest_file=2**10))
    with CheckpointManager(metric="loss") as manager:
        for epoch in (1, 2):
            weights = {str(number): torch.ones(2**8) for number in range(3)}  # 1 KB each
            manager.save_epoch_checkpoint({"model": weights, "epoch": epoch}, epoch, {"loss": -epoch})
    asked: list[str] = []

    def received(name: str, count: int, total: int) -> None:
        asked.append(name)
        if len(asked) == 2:  # while the first file waits for its name
            raise BrokenPipeError("no reader")

    with pytest.raises(BrokenPipeError, match="no reader"):
        pull(manager.run.id, to=tmp_path / "model", received=received)
    assert len(set(asked)) == len(asked) == 2
    assert list((tmp_path / "model").iterdir()) == []


def test_a_file_that_an_interrupted_pull_has_not_written_is_refused(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, to = trained(1.0), tmp_path / "model"

    def interrupted(file: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mltrain.commands.pull.place_file", interrupted)
        pull(run_id, to=to)
    (to / "model.safetensors").write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match=r"no manifest of an earlier pull: model\.safetensors"):
        pull(run_id, to=to)


def test_the_folder_of_a_pull_may_be_text_and_a_device_that_is_not_here_is_refused(
    server: TrackingClient, tmp_path: Path
) -> None:
    run_id = trained(0.5)
    assert pull(run_id, to=str(tmp_path / "model")).folder == tmp_path / "model"
    with pytest.raises(UsageError, match="device='nowhere' is not usable here"):
        load_best(run_id, device="nowhere")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_folder_that_takes_no_files_is_refused_before_anything_is_chosen(server: TrackingClient) -> None:
    with pytest.raises(StorageError, match="/proc/x cannot be written: /proc: "):
        refuse_folder(Path("/proc/x"))
