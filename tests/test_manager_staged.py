"""Uploads of checkpoints that only reached this disk."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.policies import Latest
from mltrain.checkpoint.retention import Context, Policy
from mltrain.errors import NoCheckpoint, UsageError
from tests.support import places
from tests.support.runs import FolderRun, cut_short, epochs, state_at, train, without_staging


def test_a_checkpoint_that_only_reached_this_disk_is_the_newest(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager() as manager:
        train(manager, 1, 1)
    cut_short(here, 1)
    with here.next_attempt().manager() as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 1  # type: ignore[index]


def test_the_best_that_only_reached_this_disk_is_uploaded_before_the_next(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager(max_to_keep=1) as manager:
        train(manager, 1, 2, loss=lambda epoch: abs(epoch - 2))
    cut_short(here, 2)
    with here.next_attempt().manager(max_to_keep=1) as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 2  # type: ignore[index]
        train(manager, 3, 4, loss=lambda epoch: abs(epoch - 2))
    with without_staging(here.next_attempt()).manager() as manager:
        assert epochs(manager) == [2, 4]
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]


def test_the_best_declared_after_its_save_is_uploaded_before_the_next(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager(policy=Latest(1)) as manager:
        train(manager, 1, 2)
        manager.save_best_model(state_at(2), 0.5)
    cut_short(here, 2)
    with here.next_attempt().manager(policy=Latest(1)) as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 4)
    with without_staging(here.next_attempt()).manager() as manager:
        assert epochs(manager) == [2, 4]
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), NoCheckpoint("no epoch 9"), UsageError("keep() needs a metric.")]
)
def test_a_policy_that_fails_leaves_nothing_on_this_disk_only(error: Exception, tmp_path: Path) -> None:
    class Fails(Policy, named=False):
        def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
            raise error

    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager() as manager:
        train(manager, 1, 2)
    cut_short(here, 2)
    with here.next_attempt().manager(policy=Fails()) as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 3)
    with without_staging(here.next_attempt()).manager() as manager:
        assert epochs(manager) == [1, 2, 3]


def test_what_only_reached_this_disk_and_is_no_longer_wanted_is_not_uploaded(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager(max_to_keep=1) as manager:
        train(manager, 1, 2, loss=float)
    cut_short(here, 2)
    second = here.next_attempt()
    with second.manager(max_to_keep=1) as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 3, loss=float)
        assert epochs(manager) == [1, 3]
    assert second.removals == []
