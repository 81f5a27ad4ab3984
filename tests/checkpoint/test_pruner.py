"""Retention while a run is trained: what stays, what goes, and who may remove it."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.policies import Best, EveryNth, Latest, Pinned
from mltrain.checkpoint.pruner import MOST_LINES, Removals, recorded_removals
from mltrain.checkpoint.retention import Context, Policy
from mltrain.errors import TrackingError, UsageError
from tests.support.places import Place, behind
from tests.support.runs import FolderRun, cut_short, epochs, state_at, train


def test_the_newest_five_stay_by_default_and_the_best(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 8, loss=lambda epoch: abs(epoch - 2))
        assert epochs(manager) == [2, 4, 5, 6, 7, 8]
        assert manager.best() is not None
        assert manager.best().epoch == 2  # type: ignore[union-attr]
    assert [removal["checkpoint"] for removal in run.removals] == ["step-000000001-a01", "step-000000003-a01"]
    assert all(removal["rule"] == "not kept by Latest(5) | Best(1)" for removal in run.removals)
    assert all(removal["bytes"] > 0 for removal in run.removals)
    assert (run.tags["mltrain.latest"], run.tags["mltrain.best"]) == ("step-000000008-a01", "step-000000002-a01")


def test_how_many_stay_is_for_the_caller_to_say(run: FolderRun) -> None:
    with run.manager(max_to_keep=2) as manager:
        train(manager, 1, 5)
        assert epochs(manager) == [4, 5]


def test_which_ones_stay_is_for_the_caller_to_say(run: FolderRun) -> None:
    with run.manager(policy=EveryNth(epochs=3) | Latest(1)) as manager:
        train(manager, 1, 7)
        assert epochs(manager) == [3, 6, 7]


@dataclass(frozen=True)
class Mistaken(Policy, named=False):
    """Returns from ``keep`` what a function makes of the checkpoints."""

    kept: Callable[[Sequence[Manifest]], Any]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> Any:
        return self.kept(manifests)

    def __str__(self) -> str:
        return "Mistaken()"


@pytest.mark.parametrize("join", [lambda it: it, lambda it: it | Latest(1), lambda it: Latest(1) & it])
@pytest.mark.parametrize(
    "kept",
    [
        lambda manifests: 1 / 0,
        lambda manifests: None,
        lambda manifests: list(manifests),
        lambda manifests: {manifest.name for manifest in manifests},
    ],
)
def test_a_policy_that_fails_or_names_something_else_removes_nothing(
    kept: Callable[[Sequence[Manifest]], Any],
    join: Callable[[Policy], Policy],
    run: FolderRun,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = []
    with run.manager(policy=join(Mistaken(kept))) as manager:
        manager.when_committed(lambda new, best, store: told.append(new.epoch))
        train(manager, 1, 3)
        assert epochs(manager) == [1, 2, 3]
        with pytest.raises(UsageError, match=r"Mistaken\(\).* so no checkpoint is removed"):
            manager.prune()
    assert "no checkpoint is removed" in caplog.text
    assert "Traceback" not in caplog.text
    assert told == [1, 2, 3]


def test_an_interrupted_state_is_never_a_victim_of_rolling_clean_up(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        train(manager, 1, 3)
        manager.save_interrupt_checkpoint(state_at(3))
        manager.wait()
        assert [(m.kind, m.epoch) for m in manager.checkpoints()] == [("epoch", 3), ("interrupted", 3)]
        assert manager.load("interrupted") is not None


def test_what_was_resumed_from_stays_until_something_newer_is_committed(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 4)
    with run.next_attempt().manager(policy=Latest(1)) as manager:
        manager.load("epoch:2")
        manager.prune()
        assert epochs(manager) == [2, 4]


def test_pinned_checkpoints_and_those_in_use_stay(run: FolderRun) -> None:
    run.pinned = {"step-000000001-a01": "for the paper", "not a checkpoint": "?"}
    run.used = ["step-000000002-a01", "../../etc"]
    with run.manager(max_to_keep=1, policy=Latest(1) & Pinned()) as manager:
        train(manager, 1, 5)
        assert epochs(manager) == [1, 2, 5]


def test_what_a_dead_process_left_half_there_is_removed_by_the_next_one_that_commits(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3)
    cut_short(run, 1)
    cut_short(run, 2)
    newer = f"checkpoints/step-{9:09d}-a02/model.safetensors"
    run.place.files.write(newer, b"being uploaded")
    second = run.next_attempt()
    second.pinned = {"step-000000002-a01": "somebody wants to look at it"}
    with second.manager() as manager:
        manager.load_latest_checkpoint()
        train(manager, 4, 4)
        uncommitted = [identity.name for identity in manager.store.survey().uncommitted]
    assert uncommitted == ["step-000000009-a02", "step-000000002-a01"], "what may be under way, and what is pinned"


def test_the_policy_is_recorded_for_those_who_prune_later(run: FolderRun) -> None:
    with run.manager(policy=EveryNth(epochs=3) | Latest(1)):
        assert run.tags["mltrain.retention"] == "EveryNth(epochs=3) | Latest(1)"


def test_the_models_made_from_a_checkpoint_go_with_it(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        train(manager, 1, 3)
    assert run.without_models == ["step-000000001-a01", "step-000000002-a01"]


def test_an_overtaken_attempt_prunes_and_announces_nothing(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        train(manager, 1, 1)
        run.overtaken = True
        train(manager, 2, 3)
        assert run.tags["mltrain.latest"] == "step-000000001-a01"
        assert [one.step for one in manager.store.manifests()] == [1]
    assert run.removals == []


def test_a_store_that_refuses_every_removal_is_reported_once(
    local: FolderRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with local.manager(max_to_keep=1) as manager, caplog.at_level(logging.WARNING):
        with monkeypatch.context() as patch:
            patch.setattr("os.unlink", refused)
            train(manager, 1, 4)
            assert epochs(manager) == [1, 2, 3, 4]
        assert caplog.text.count("Older checkpoints stay") == 1
        assert local.removals == []


def test_while_the_server_is_away_nothing_is_removed_and_all_else_goes_on(
    run: FolderRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def away() -> Any:
        raise TrackingError("nobody there")

    with run.manager(max_to_keep=1) as manager:
        manager.when_committed(lambda manifest, best, store: told.append(manifest.step))
        with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
            patch.setattr(run, "in_use", away)
            train(manager, 1, 3)
        assert epochs(manager) == [1, 2, 3]
        assert "Older checkpoints were not removed: nobody there" in caplog.text
        train(manager, 4, 4)
        assert epochs(manager) == [4]
    assert told == [1, 2, 3, 4]


def test_who_is_overtaken_between_two_removals_removes_nothing_more(
    run: FolderRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run.manager(policy=Latest(10)) as manager:
        train(manager, 1, 4)
    later = run.next_attempt()
    manager = later.manager(policy=Latest(1))
    removed = later.remove_models

    def taken_over(checkpoint: str) -> None:
        removed(checkpoint)
        later.overtaken = True

    monkeypatch.setattr(later, "remove_models", taken_over)
    manager.prune()
    assert epochs(manager) == [2, 3, 4]
    assert later.removals == []  # what it did is for the new holder to find out, who may write
    manager.close()


class Counted(LocalArtifactRepository):
    """An artifact store that counts requests and transferred bytes."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.requests: Counter[str] = Counter()

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        self.requests["list"] += 1
        return super().list_artifacts(path)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.requests["put"] += 1
        super().log_artifact(local_file, artifact_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self.requests["get"] += 1
        super()._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self.requests["delete"] += 1
        super().delete_artifacts(artifact_path)


class Recording(FolderRun):
    """A run that keeps the removal record among its artifacts."""

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.recorder = getattr(self, "recorder", None) or Removals(self.artifacts)
        self.tags["removed"] = self.recorder.append(records)


def requests_of_a_commit(folder: Path, keep: int) -> Counter[str]:
    repositories: list[Counted] = []

    def repository(root: str) -> Counted:
        repositories.append(Counted(root))
        return repositories[-1]

    run = Recording(folder, place=behind(folder / "artifacts", repository))
    with run.manager(policy=Latest(keep) | Best(2)) as manager:
        train(manager, 1, keep + 4, loss=float)
        assert len(manager.checkpoints()) == keep + 2
        (counted,) = repositories
        counted.requests.clear()
        train(manager, keep + 5, keep + 7, loss=float)
        assert run.tags["removed"].startswith(f"{5} checkpoints")
        return counted.requests


def test_a_commit_asks_the_store_for_as_much_however_many_checkpoints_are_kept(tmp_path: Path) -> None:
    few, many = requests_of_a_commit(tmp_path / "few", 5), requests_of_a_commit(tmp_path / "many", 30)
    assert few == many
    assert many["get"] == 0, "what this process wrote is not read again"
    assert many["list"] <= 3 * 10


def test_the_record_of_removals_is_complete_and_each_file_of_it_stays_small(place: Place) -> None:
    place.files.write("retention.jsonl", b'{"checkpoint": "older", "bytes": 500000}\n')
    artifacts = place.opened()
    removals = Removals(artifacts)
    for number in range(2 * MOST_LINES):
        said = removals.append([{"checkpoint": f"{number}", "bytes": 1000000}])
    assert said == f"{2 * MOST_LINES + 1} checkpoints, {2 * MOST_LINES + 0.5} MB"
    files = {path: content for path, content in place.files.all().items() if path.startswith("retention")}
    assert len(files) == 3
    latest = files["retention.jsonl"].decode().splitlines()
    assert max(content.count(b"\n") for content in files.values()) <= MOST_LINES
    names = [json.loads(line)["checkpoint"] for line in recorded_removals(artifacts, latest)]
    assert names == ["older", *map(str, range(2 * MOST_LINES))]
    assert Removals(artifacts).append([{"checkpoint": "x", "bytes": 1}]).startswith(f"{2 * MOST_LINES + 2} checkpoints")


def test_nothing_goes_where_the_best_is_only_remembered(run: FolderRun, caplog: pytest.LogCaptureFixture) -> None:
    with run.manager(policy=Latest(3) | Best(1)) as manager:
        train(manager, 1, 3, loss=float)
        cut_short(run, 1)
        train(manager, 4, 5, loss=float)
        assert run.removals == []
        assert "step-000000001-a01 is missing or changed in the store" in caplog.text
        assert epochs(manager) == [2, 3, 4, 5]
        train(manager, 6, 6, loss=float)
        assert epochs(manager) == [2, 4, 5, 6], "the next best in its place"
