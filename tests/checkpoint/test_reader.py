"""The reader chooses a checkpoint and skips damaged ones."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import NoCheckpoint, UsageError
from mltrain.manager import CheckpointManager
from tests.support import places
from tests.support.runs import FolderRun, epochs, state_at, train, without_staging


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 4)])
def test_the_best_is_derived_from_a_metric_and_a_mode(mode: str, best: int, run: FolderRun) -> None:
    with run.manager(metric="score", mode=mode) as manager:
        for epoch in (1, 2, 3, 4):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"score": float(epoch)})
        manager.wait()
        assert manager.load_best_model()["epoch"] == best  # type: ignore[index]


def test_what_does_not_exist_is_named_with_what_does(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
        for which in ("epoch:7", "step:7", "step-000000007-a01"):
            with pytest.raises(NoCheckpoint, match=r"epoch 1 \(step-000000001-a01\), epoch 2"):
                manager.load(which)
        with pytest.raises(UsageError, match="does not name a checkpoint"):
            manager.load("newest")


@pytest.mark.parametrize(("which", "epoch"), [("epoch:2", 2), ("step:3", 3), ("step-000000001-a01", 1), ("latest", 4)])
def test_a_state_is_loaded_by_epoch_step_or_name(which: str, epoch: int, run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 4)
        assert manager.load(which)["epoch"] == epoch  # type: ignore[index]


def damage(run: FolderRun, step: int, file: str = "model.safetensors") -> None:
    path = f"checkpoints/step-{step:09d}-a01/{file}"
    run.place.files.write(path, run.place.files.read(path)[:-1])


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_damaged_latest_is_reported_and_the_one_before_it_is_used(
    file: str, run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager() as manager:
        train(manager, 1, 3)
    damage(run, 3, file)
    other = without_staging(run)
    with other.manager() as manager, caplog.at_level(logging.WARNING):
        assert manager.load_latest_checkpoint()["epoch"] == 2  # type: ignore[index]
    assert "step-000000003-a01 is damaged" in caplog.text
    assert "step-000000003-a01" in other.tags["mltrain.damaged.step-000000003-a01"]


def configured(manager: CheckpointManager, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        params = b'{"lr": %d}' % epoch
        manager.save(state_at(epoch), epoch=epoch, kind="epoch", extra={"params.json": params})
    assert manager.wait(60)


def changed(run: FolderRun, step: int, how: str) -> None:
    path = f"checkpoints/step-{step:09d}-a01/params.json"
    content = bytearray(run.place.files.read(path))
    if how == "missing":
        run.place.files.drop(path)
    else:
        content[3] ^= 1
        run.place.files.write(path, bytes(content))


@pytest.mark.parametrize("how", ["missing", "one bit"])
def test_a_configuration_is_verified_before_a_checkpoint_is_chosen(how: str, run: FolderRun) -> None:
    with run.manager() as manager:
        configured(manager, 1, 3)
    changed(run, 3, how)
    other = without_staging(run)
    with other.manager() as manager:
        manifest, (parts, params) = manager.reader.load_configured()
        assert (manifest.step, parts["epoch"], params) == (2, 2, {"lr": 2})
        manager.continue_from(manifest)
        assert manager.reader.load()[1]["epoch"] == 3, "a loop that reads no configuration needs none"
        peeked = manager.peek()
        assert peeked is not None
        assert peeked["epoch"] == 2, "the next save continues from it"
        train(manager, 3, 3)
        assert [m.name for m in manager.checkpoints()][2:] == ["step-000000003-a01", "step-000000003-a02"]
    assert "params.json" in other.tags["mltrain.damaged.step-000000003-a01"]
    with other.next_attempt().manager() as manager:  # only who finds a checkpoint damaged leaves it to be looked at
        manager.load_latest_checkpoint()
        train(manager, 4, 4)
        assert [m.name for m in manager.checkpoints()][2:] == ["step-000000003-a02", "step-000000004-a03"]


def test_a_checkpoint_without_a_configuration_is_passed_over_unless_it_was_imported(
    local: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with local.manager() as manager:
        manager.save(state_at(1), step=1, kind="imported")
        assert manager.wait(60)
        assert manager.reader.load_configured()[1][1] is None
        configured(manager, 2, 2)
        manager.save(state_at(3), step=3)
        manager.save(state_at(4), step=4, extra={"params.json": b"[1]"})
        manager.save(state_at(5), step=5, extra={"params.json": b"{lr"})
        assert manager.wait(60)
        _, (parts, params) = manager.reader.load_configured()
        assert (parts["epoch"], params) == (2, {"lr": 2})
    assert "step-000000003-a01 has no params.json" in caplog.text
    assert "step-000000004-a01" in caplog.text
    with FolderRun(local.folder / "by hand").manager() as manager:
        train(manager, 1, 2)
        with pytest.raises(NoCheckpoint, match="has a configuration"):
            manager.reader.load_configured()


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_when_all_are_damaged_training_does_not_start_afresh(file: str, run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
    damage(run, 1, file)
    damage(run, 2, file)
    with without_staging(run).manager() as manager, pytest.raises(NoCheckpoint, match="is usable"):
        manager.load_latest_checkpoint()


def test_a_damaged_one_that_was_asked_for_by_name_is_not_replaced_by_another(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3)
    damage(run, 2)
    with without_staging(run).manager() as manager:
        for which in ("epoch:2", "step:2", "step-000000002-a01"):
            with pytest.raises(NoCheckpoint):
                manager.load(which)


def torn(run: FolderRun, step: int) -> None:
    path = f"checkpoints/step-{step:09d}-a01/manifest.json"
    run.place.files.write(path, run.place.files.read(path)[:-200])


def test_a_first_manifest_cut_short_is_no_checkpoint_and_nothing_is_called_damaged(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager() as manager:
        train(manager, 1, 1)
    torn(run, 1)
    other = without_staging(run)
    other.tags = {}  # nobody has been told of this commit: its writing was interrupted
    with other.manager() as manager:
        assert manager.load_latest_checkpoint() is None
        assert "never committed" in caplog.text
        train(manager, 1, 2)
        assert epochs(manager) == [1, 2]
    assert not [tag for tag in other.tags if tag.startswith("mltrain.damaged")]


def test_a_manifest_cut_short_after_its_commit_was_announced_is_damage(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 1)
    torn(run, 1)
    with without_staging(run).manager() as manager, pytest.raises(NoCheckpoint, match="is usable"):
        manager.load_latest_checkpoint()


class Counting(LocalArtifactRepository):  # type: ignore[misc] # MLflow has no types
    """Another machine's store, which counts what it is asked for."""

    requests = 0

    def list_artifacts(self, path: str | None = None) -> Any:
        self.requests += 1
        return super().list_artifacts(path)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.requests += 1
        super().log_artifact(local_file, artifact_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self.requests += 1
        super()._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self.requests += 1
        super().delete_artifacts(artifact_path)


def test_a_commit_and_a_resume_take_as_many_requests_however_many_checkpoints_are_kept(tmp_path: Path) -> None:
    taken = {}
    for kept in (2, 30):
        store = Counting(str(tmp_path / f"{kept}"))
        run = FolderRun(tmp_path / f"run-{kept}", place=places.behind(tmp_path / f"{kept}", lambda _, s=store: s))
        with run.manager(max_to_keep=kept) as manager:
            train(manager, 1, kept)
            before = store.requests
            train(manager, kept + 1, kept + 1)
            commit = store.requests - before
            assert len(epochs(manager)) == kept
        manager = without_staging(run).manager(max_to_keep=kept)
        before = store.requests
        assert manager.load_latest_checkpoint()["epoch"] == kept + 1  # type: ignore[index]
        taken[kept] = commit, store.requests - before
        manager.close()
    assert taken[30] == taken[2]


def test_the_newest_is_the_first_choice_even_where_only_this_disk_has_it(run: FolderRun) -> None:
    with run.manager() as manager:
        assert manager.reader.newest() is None
        train(manager, 1, 3)
        newest = manager.reader.newest()
        assert newest is not None
        assert newest == manager.reader.matching("latest")[0]
        assert [one.epoch for one in manager.reader.choices("latest")] == [3, 2, 1]
