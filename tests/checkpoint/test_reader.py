"""Which checkpoint a load chooses, what is declared of one, and what happens where some are damaged."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.policies import Best, Latest
from mltrain.errors import NoCheckpoint, UsageError
from mltrain.manager import CheckpointManager
from tests.support import places
from tests.support.runs import FolderRun, epochs, saved, state_at, train, without_staging


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 4)])
def test_the_best_is_derived_from_a_metric_and_a_mode(mode: str, best: int, run: FolderRun) -> None:
    with run.manager(metric="score", mode=mode) as manager:
        for epoch in (1, 2, 3, 4):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"score": float(epoch)})
        manager.wait()
        assert manager.load_best_model()["epoch"] == best  # type: ignore[index]


def test_the_best_can_be_declared(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        for epoch in range(1, 6):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            if epoch in (1, 3):
                manager.save_best_model(state_at(epoch), 0.9, epoch)
        manager.wait()
        assert epochs(manager) == [3, 5], "one copy of its bytes, under the name of its epoch"
    with run.next_attempt().manager() as manager:
        assert manager.load_best_model()["epoch"] == 3  # type: ignore[index]


def marked(manager: CheckpointManager) -> list[tuple[int, bool, dict[str, float]]]:
    return [(m.epoch, m.best, m.metrics) for m in manager.checkpoints()]


def test_of_several_declared_bests_each_counts_with_the_metric_it_was_given(run: FolderRun) -> None:
    with run.manager(policy=Latest(1) | Best(2)) as manager:
        for epoch in range(1, 8):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"train/loss": float(epoch)})
            if epoch in (1, 2, 5):
                manager.save_best_model(state_at(epoch), epoch / 10)
        manager.wait()
        expected = [
            (2, True, {"train/loss": 2.0, "val/loss": 0.2}),
            (5, True, {"train/loss": 5.0, "val/loss": 0.5}),
            (7, False, {"train/loss": 7.0}),
        ]
        assert marked(manager) == expected
        assert manager.best().epoch == 5  # type: ignore[union-attr]
    assert run.tags["mltrain.best"] == "step-000000005-a01"
    with without_staging(run).manager(policy=Latest(1) | Best(2)) as manager:
        assert marked(manager) == expected
        assert manager.load_best_model()["epoch"] == 5  # type: ignore[index]
        train(manager, 8, 9)
        assert epochs(manager) == [2, 5, 9]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"step": 7}, {"step": 7}),
        ({"step": 7, "kind": "step"}, {"step": 7, "kind": "epoch", "epoch": 1}),
        ({"state": {"step": 7}}, {"step": 7, "kind": "interrupted"}),
        ({"epoch": 7}, {"state": {"epoch": 7}}),
        ({"epoch": 7, "kind": "epoch"}, {"step": 7}),
    ],
    ids=str,
)
def test_a_step_that_is_saved_again_as_the_best_is_the_best(
    first: dict[str, Any], again: dict[str, Any], local: FolderRun
) -> None:
    with local.manager(max_to_keep=1, mode="max") as manager:
        saved(manager, **first, metrics={"a": 1.0})
        saved(manager, **again, best=True, metrics={"val/loss": 0.5})
        saved(manager, **again, metrics={"b": 2.0})
        saved(manager, step=8)
        saved(manager, step=9)
        manager.wait()
        assert [(m.step, m.best, m.metrics) for m in manager.checkpoints()] == [
            (7, True, {"a": 1.0, "val/loss": 0.5, "b": 2.0}),
            (9, False, {}),
        ]


def test_what_an_older_version_declared_best_still_is(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3, loss=float)
    run.place.files.write("best.json", b'{"checkpoint": "step-000000002-a01"}')
    with run.next_attempt().manager() as manager:
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]
        manager.load_latest_checkpoint()
        manager.save_epoch_checkpoint(state_at(4), 4)
        manager.save_best_model(state_at(4), 0.5, 4)
        manager.wait()
        declared = json.loads(run.place.files.read("best.json"))
        assert declared["checkpoint"] == "step-000000004-a02", "which an older version reads"
        assert [m.epoch for m in manager.checkpoints() if m.best] == [2, 4]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b'{"notes": 7}', b'{"notes": [{"checkpoint": 7}]}', b"[" * 100_000, b"\xff"]
)
def test_a_record_of_declarations_that_is_none_declares_nothing(content: bytes, local: FolderRun) -> None:
    local.place.files.write("best.json", content)
    with local.manager() as manager:
        train(manager, 1, 1)
        assert manager.best() is None


def test_what_is_gone_leaves_the_record_of_declarations(run: FolderRun) -> None:
    with run.manager(policy=Latest(1) | Best(1)) as manager:
        for epoch in range(1, 6):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            manager.save_best_model(state_at(epoch), 0.1, epoch)
        manager.wait()
    rows = json.loads(run.place.files.read("best.json"))["notes"]
    assert len(rows) <= 2
    assert rows[-1] == {"checkpoint": "step-000000005-a01", "best": True, "metrics": [["val/loss", 0.1]]}


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
def test_of_a_damaged_latest_the_one_before_is_used_and_that_is_said(
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
    other.tags = {}  # nobody was told that it is committed: its writing was interrupted
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
