"""What a stage hands on: committed by its record, compared with its digests, copied verified."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import DamagedCheckpoint, NoCheckpoint, StorageError
from mltrain.run import stage_outputs as outputs
from mltrain.store.artifacts import Artifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import RemoteArtifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import STAGE_INPUTS_TAG
from tests.support.database import fresh_database

RUN = "0" * 32


@pytest.fixture(params=["on this machine", "elsewhere"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    root = tmp_path / "artifacts"
    root.mkdir()
    return (
        LocalArtifacts(root)
        if request.param == "on this machine"
        else RemoteArtifacts(LocalArtifactRepository(str(root)))
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "one.bin").write_bytes(bytes(range(100)))
    (folder / "about.json").write_text("{}")
    return folder


def place(tmp_path: Path, name: str = "a01") -> Path:
    return tmp_path / "artifacts" / "output" / name


def test_what_is_committed_is_found_again_with_its_digests(artifacts: Artifacts, made: Path) -> None:
    committed = outputs.commit(RUN, artifacts, "a01", made)
    assert outputs.made(RUN, artifacts) == committed
    assert sorted(committed.files) == ["about.json", "parts/one.bin"]
    assert outputs.damage(artifacts, committed) is None


def test_equal_files_have_equal_digests_in_every_attempt(artifacts: Artifacts, made: Path) -> None:
    first = outputs.commit(RUN, artifacts, "a01", made)
    second = outputs.commit(RUN, artifacts, "a02", made)
    assert first.digest == second.digest
    (made / "about.json").write_text("{} ")
    assert outputs.commit(RUN, artifacts, "a03", made).digest != first.digest


def test_the_newest_attempt_counts_and_one_without_a_record_does_not(
    artifacts: Artifacts, made: Path, tmp_path: Path
) -> None:
    outputs.commit(RUN, artifacts, "a02", made)
    outputs.commit(RUN, artifacts, "a100", made)
    outputs.commit(RUN, artifacts, "a99", made)
    assert outputs.made(RUN, artifacts).name == "a100"
    (place(tmp_path, "a100") / "output.json").unlink()
    assert outputs.made(RUN, artifacts).name == "a99"
    assert outputs.unfinished(artifacts) == ["a100"]


def test_without_any_record_there_is_no_output(artifacts: Artifacts) -> None:
    with pytest.raises(NoCheckpoint, match="has no complete output"):
        outputs.made(RUN, artifacts)


def test_a_record_cut_at_any_length_is_not_believed(artifacts: Artifacts, made: Path, tmp_path: Path) -> None:
    outputs.commit(RUN, artifacts, "a01", made)
    record = place(tmp_path) / "output.json"
    whole = record.read_bytes()
    for length in range(0, len(whole), 7):
        record.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint):
            outputs.made(RUN, artifacts)


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2},
        {"run_id": "1" * 32},
        {"digest": "0" * 64},
        {"files": {}},
        {"files": {"../about.json": {"size": 2, "sha256": "0" * 64}}},
        {"files": {"about.json": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"about.json": {"size": 2}}},
        {"files": [1]},
    ],
)
def test_a_record_that_was_tampered_with_is_not_believed(
    changed: dict[str, Any], artifacts: Artifacts, made: Path, tmp_path: Path
) -> None:
    outputs.commit(RUN, artifacts, "a01", made)
    record = place(tmp_path) / "output.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
    with pytest.raises((DamagedCheckpoint, StorageError)):
        outputs.made(RUN, artifacts)


@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "missing", "swapped"])
def test_every_kind_of_damage_is_seen(harm: str, artifacts: Artifacts, made: Path, tmp_path: Path) -> None:
    output = outputs.commit(RUN, artifacts, "a01", made)
    file = place(tmp_path) / "parts" / "one.bin"
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {
                "flip": content[:-1] + bytes([content[-1] ^ 1]),
                "cut": content[:-1],
                "longer": content + b"x",
                "swapped": content[::-1],
            }[harm]
        )
    assert "parts/one.bin" in str(outputs.damage(artifacts, output))


@pytest.mark.parametrize("name", ["output.json", ".hidden", "ä"])
def test_a_file_that_no_artifact_can_be_called_is_refused(name: str, artifacts: Artifacts, made: Path) -> None:
    (made / name).write_text("x")
    with pytest.raises(StorageError):
        outputs.commit(RUN, artifacts, "a01", made)
    with pytest.raises(NoCheckpoint):
        outputs.made(RUN, artifacts)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingClient:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    uri = fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    return TrackingClient(uri, MlflowClient(uri))


def given_run(server: TrackingClient, made: Path) -> tuple[outputs.Output, LocalArtifacts]:
    run = server.client.create_run("0")
    artifacts = LocalArtifacts(Path(run.info.artifact_uri))
    return outputs.commit(run.info.run_id, artifacts, "a01", made), artifacts


def test_a_copy_holds_exactly_what_was_handed_on_and_is_put_right(server: TrackingClient, made: Path) -> None:
    output, _ = given_run(server, made)
    folder = outputs.fetched(server, output)
    (folder / "parts" / "one.bin").write_bytes(b"damaged")
    (folder / "stray").write_text("x")
    (folder / "link").symlink_to(made)
    assert outputs.fetched(server, output) == folder
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {
        "about.json",
        "parts",
        "parts/one.bin",
    }
    assert (folder / "parts" / "one.bin").read_bytes() == (made / "parts" / "one.bin").read_bytes()
    assert (made / "about.json").exists()


def a_file_in_place_of_the_copy(copy: Path) -> None:
    shutil.rmtree(copy)
    copy.write_text("no folder")


def a_folder_in_place_of_a_file(copy: Path) -> None:
    (copy / "about.json").unlink()
    (copy / "about.json").mkdir()


def a_folder_in_place_of_the_lock(copy: Path) -> None:
    lock = copy.with_name(f"{copy.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()


@pytest.mark.parametrize(
    "harm", [a_file_in_place_of_the_copy, a_folder_in_place_of_a_file, a_folder_in_place_of_the_lock]
)
def test_what_stands_in_the_place_of_a_copy_is_set_aside(
    harm: Callable[[Path], None], server: TrackingClient, made: Path
) -> None:
    output, _ = given_run(server, made)
    harm(outputs.fetched(server, output))
    again = outputs.fetched(server, output)
    assert sorted(file.name for file in again.rglob("*") if file.is_file()) == ["about.json", "one.bin"]


def test_what_is_damaged_in_the_store_is_not_handed_on(server: TrackingClient, made: Path) -> None:
    output, artifacts = given_run(server, made)
    (Path(str(artifacts.local_root)) / "output" / "a01" / "about.json").write_text("[]")
    with pytest.raises(DamagedCheckpoint, match=r"about.json of a01 is not what was committed"):
        outputs.fetched(server, output)


def test_an_intact_copy_needs_no_store(server: TrackingClient, made: Path) -> None:
    output, artifacts = given_run(server, made)
    folder = outputs.fetched(server, output)
    artifacts.remove_output("a01")
    assert outputs.fetched(server, output) == folder


def test_inputs_of_a_run_are_fetched_by_its_tag_and_given_ones_are_left_alone(
    server: TrackingClient, made: Path
) -> None:
    output, artifacts = given_run(server, made)
    run = server.client.create_run("0", tags={STAGE_INPUTS_TAG: outputs.described({"files": output})})
    assert outputs.fetched_inputs(server, run) == {"files": str(outputs.fetched(server, output))}
    assert outputs.fetched_inputs(server, run, {"files"}) == {}
    artifacts.remove_output("a01")
    with pytest.raises(NoCheckpoint, match=r"The input files, a01 of run .* no longer exists"):
        outputs.fetched_inputs(server, run)


@pytest.mark.parametrize("tag", ["", "{", "[]", '{"files": 1}', '{"files": {"run": "x"}}'])
def test_a_tag_that_cannot_be_read_names_no_inputs(tag: str) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id=RUN), data=SimpleNamespace(tags={STAGE_INPUTS_TAG: tag}))
    assert outputs.inputs_of(run) == {}
