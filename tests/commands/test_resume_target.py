"""``--resume`` names a run or a file; a file continues the run that wrote it exactly, or begins a new one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mltrain.checkpoint import checkpoint_file, tensor_file
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import (
    ConfigError,
    DamagedCheckpoint,
    DataError,
    MltrainError,
    NoCheckpoint,
    StateMismatch,
    UsageError,
)
from mltrain.project import Project
from mltrain.run.checkpoints import open_checkpoints
from tests.support import tiny
from tests.support.database import use_database
from tests.support.equality import identical
from tests.support.unchanged import Unchanged

TINY = Project("tiny", tiny.Config, tiny.build, Path(tiny.__file__))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A store with a finished run. The folder ``files`` beside its database holds all checkpoints as files."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        use_database(patch, folder)
        (folder / "data").mkdir()
        (folder / "data" / "file").write_text("one")
        keys = {"epochs": 4, "max_to_keep": 2, "export": "full", "data": str(folder / "data")}
        yield (
            folder,
            run_training(Request(project=TINY, overrides={**keys, "model_save_path": str(folder / "files")})).run_id,
        )


@pytest.fixture
def store(undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That store, for attempts that leave no trace in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{undisturbed[0] / 'mlflow.db'}")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return undisturbed[0]


@pytest.fixture
def another(undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine's store without the run; the files were copied."""
    use_database(monkeypatch, tmp_path)
    shutil.copytree(undisturbed[0] / "files", tmp_path / "files")
    shutil.copytree(undisturbed[0] / "data", tmp_path / "data")
    return tmp_path


def newest(run_id: str) -> Any:
    return open_checkpoints(run_id).load("latest")[1]


def resume(word: str | Path, **keys: Any) -> str:
    keys = {"model_save_path": str(Path(word).parent / "new"), **keys}
    words = {name: keys.pop(name) for name in ("resume_from", "files", "take_over") if name in keys}
    outcome = run_training(Request(project=TINY, resume=word, overrides=keys, **words))
    assert outcome.exit_code == 0
    return outcome.run_id


def test_a_file_continues_the_run_that_wrote_it_as_if_nothing_had_been(
    undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_database(monkeypatch, tmp_path)
    shutil.copytree(undisturbed[0] / "data", tmp_path / "data")
    keys = {"export": "full", "model_save_path": str(tmp_path / "files"), "data": str(tmp_path / "data")}
    run_id = run_training(Request(project=TINY, overrides={"epochs": 2, "max_to_keep": 1, **keys})).run_id
    assert resume(tmp_path / "files" / "latest_checkpoint.pth", epochs=3) == run_id
    assert not [record for record in caplog.records if "new values are recorded" in record.getMessage()]
    names = {manifest.epoch for manifest in open_checkpoints(run_id).all()}
    assert 1 not in names  # the run keeps it no more: the file alone has it
    assert resume(tmp_path / "files" / "checkpoint_epoch_1.pth", epochs=4) == run_id
    assert [record for record in caplog.records if "rolled back to epoch 1" in record.getMessage()]
    finished = checkpoint_file.read(undisturbed[0] / "files" / "latest_checkpoint.pth")
    assert identical(newest(run_id), finished)
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.data.tags["mltrain.status"]) == ("FINISHED", "finished")
    assert len(MlflowClient().search_runs(["0"])) == 1


def test_a_file_of_another_store_begins_a_new_run_that_goes_on_exactly(
    undisturbed: tuple[Path, str], another: Path, caplog: pytest.LogCaptureFixture
) -> None:
    word = another / "files" / "checkpoint_epoch_2.pth"
    run_id = resume(word, data=str(another / "data"))
    assert f"A new run begins with {word}" in caplog.text
    assert run_id != undisturbed[1]
    assert identical(newest(run_id), checkpoint_file.read(undisturbed[0] / "files" / "latest_checkpoint.pth"))
    run = MlflowClient().get_run(run_id)
    assert run.data.tags["mltrain.imported"] == "checkpoint_epoch_2.pth"
    assert run.data.params["data"] == str(another / "data")
    assert [manifest.epoch for manifest in open_checkpoints(run_id).all()] == [3, 4]
    copy = another / "files" / "new" / "best_model.pth"
    assert checkpoint_file.origin_of(copy).run_id == run_id  # type: ignore[union-attr]


def test_a_new_run_keeps_what_its_file_held_before_it_trains(undisturbed: tuple[Path, str], another: Path) -> None:
    file = another / "files" / "best_model.pth"
    run_id = resume(file, data=str(another / "data"), epochs=4)
    (manifest,) = open_checkpoints(run_id).all()
    before = checkpoint_file.manifest_of(file)
    assert before is not None
    assert (manifest.step, manifest.epoch, manifest.metrics) == (before.step, before.epoch, before.metrics)
    assert identical(newest(run_id), checkpoint_file.read(file))


def test_a_file_of_another_program_begins_a_run_in_one_command(another: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.build(tiny.Config()).step.inner.model  # type: ignore[attr-defined]
    torch.save({"model_state_dict": model.state_dict(), "epoch": 2, "anything": 1}, another / "old.pth")
    run_id = resume(another / "old.pth", epochs=3)
    assert [manifest.kind for manifest in open_checkpoints(run_id).all()] == ["imported", "epoch"]
    assert MlflowClient().get_run(run_id).data.metrics["epoch"] == 3
    assert len(MlflowClient().search_runs(["0"])) == 1
    assert "Not taken from" in caplog.text
    assert "anything" in caplog.text


def test_weights_alone_lead_back_to_their_run(undisturbed: tuple[Path, str], store: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from mltrain.commands.resume_target import resolve_target
    from mltrain.tracking.client import connect

    newest_there = open_checkpoints(undisturbed[1]).first("latest")
    files = open_checkpoints(undisturbed[1]).store.fetch(newest_there)
    stamp = {"run_id": undisturbed[1], "checkpoint": newest_there.name, "project": "tiny"}
    (tmp_path / "latest.safetensors").write_bytes(tensor_file.stamped(files["model.safetensors"], stamp))
    assert load_file(tmp_path / "latest.safetensors").keys() == newest(undisturbed[1])["model"].keys()
    request = resolve_target(Request(resume=tmp_path / "latest.safetensors"), connect())
    assert (request.resume_run, request.resume_from, request.resume_file) == (undisturbed[1], "latest", None)
    gone = {**stamp, "checkpoint": "step-000000001-a01"}
    (tmp_path / "gone.safetensors").write_bytes(tensor_file.stamped(files["model.safetensors"], gone))
    request = resolve_target(Request(resume=tmp_path / "gone.safetensors"), connect())
    assert (request.resume_run, request.resume_file) == (None, tmp_path / "gone.safetensors")


def test_the_word_stands_in_the_option_in_a_key_or_in_a_file(
    undisturbed: tuple[Path, str], store: Path, tmp_path: Path
) -> None:
    from mltrain.commands.resume_target import resolve_target
    from mltrain.tracking.client import connect

    run_id, file = undisturbed[1], store / "files" / "latest_checkpoint.pth"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"training": {"resume_checkpoint": str(file)}}))
    nothing = tmp_path / "nothing.json"
    nothing.write_text('{"training": {"resume_checkpoint": null}}')
    requests = [
        Request(resume=run_id[:7]),
        Request(overrides={"resume_checkpoint": run_id[:9].upper()}),
        Request(resume_run=run_id[:8], files=(config,)),
        Request(resume=file),
        Request(resume=store / "files"),
        Request(files=(nothing, config)),
        Request(files=(config, nothing)),
        Request(resume=True, overrides={"checkpoint_path": str(file)}),  # type: ignore[arg-type]
    ]
    found = [resolve_target(request, connect()) for request in requests]
    assert [one.resume_run for one in found] == [run_id] * 8
    assert [one.resume_file for one in found] == [None] * 3 + [file] * 5
    assert all("resume_checkpoint" not in one.overrides for one in found)
    assert resolve_target(Request(files=(nothing,)), connect()).resume_run is None


REFUSED: dict[str, tuple[type[MltrainError], str, dict[str, Any]]] = {
    "no such file": (NoCheckpoint, "There is no file .*latest_checkpoint.pth", {"resume": "files/none.pth"}),
    "no such folder": (NoCheckpoint, "Its folder .* does not exist", {"resume": "nowhere/none.pth"}),
    "a folder of something else": (NoCheckpoint, "is a folder without latest_checkpoint.pth", {"resume": "data"}),
    "no value": (UsageError, "--resume names nothing", {"resume": True}),
    **{
        f"a choice, {word}": (UsageError, f"--resume ID --resume-from {word}", {"resume": word})
        for word in ("latest", "best", "epoch:2")
    },
    "two words": (UsageError, "--resume and --resume-run", {"resume": "files/best_model.pth", "resume_run": "abcd"}),
    "two of a kind": (UsageError, "--resume and --fork-run", {"resume": "abcd", "fork_run": "abcd"}),
    "a checkpoint of a checkpoint": (
        UsageError,
        "--resume-from best chooses among",
        {"resume": "files/latest_checkpoint.pth", "resume_from": "best"},
    ),
    "a truncated file": (DamagedCheckpoint, "not a checkpoint", {"resume": "truncated.pth"}),
    "a changed file": (DamagedCheckpoint, "has another SHA-256", {"resume": "changed.pth"}),
    "a text": (DamagedCheckpoint, "is not a readable checkpoint", {"resume": "data/file"}),
    "another shape": (StateMismatch, "of another shape", {"resume": "files/best_model.pth", "hidden": 17}),
    "other data": (DataError, "The data have changed", {"resume": "files/best_model.pth", "data": "files"}),
    "an unknown key": (ConfigError, "Unknown key 'lrr'", {"resume": "files/best_model.pth", "lrr": 1}),
    "export without a folder": (
        ConfigError,
        "export=full has no folder",
        {"resume": "files/best_model.pth", "model_save_path": None},
    ),
    "a folder as a file": (MltrainError, "is a folder", {"resume": "files/best_model.pth", "checkpoint_path": "data"}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_resume_leaves_no_trace(
    what: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, problem, words = REFUSED[what]
    for name in ("files", "data"):
        (tmp_path / name).symlink_to(store / name)
    monkeypatch.chdir(tmp_path)
    whole = (store / "files" / "latest_checkpoint.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed.pth").write_bytes(whole.replace(b'"batch"', b'"match"'))
    options = {
        name: value for name, value in words.items() if name in ("resume", "resume_run", "fork_run", "resume_from")
    }
    keys = {name: value for name, value in words.items() if name not in options}
    with Unchanged(store, tmp_path / "home", kind, problem):
        run_training(Request(project=TINY, overrides={"epochs": 5, **keys}, **options))
