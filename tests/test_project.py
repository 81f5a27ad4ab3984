"""Finding a project: the user may name any file, a run may name only what lies where it is resumed."""

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.errors import UsageError
from mltrain.project import find, find_pipeline
from mltrain.tracking.tags import PIPELINE_TAG, PROJECT_TAG
from tests.support.workplace import Workplace

PROJECT = "import os\nopen(os.environ['EXECUTED'], 'a').close()\ndef build(config): ...\n"
PIPELINE = """
import os
open(os.environ['EXECUTED'], 'a').close()
import mltrain
def build(config): ...
PIPELINE = mltrain.Pipeline("pipe", [mltrain.Stage("first", mltrain.Config, build=build)])
"""


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists once a file below was executed. The working directory is ``checkout/work``."""
    outside, checkout = tmp_path / "outside", tmp_path / "checkout"
    work = checkout / "work"
    for folder in (outside / "folder", work / "inner", work / "mlruns" / "0" / "artifacts"):
        folder.mkdir(parents=True)
        (folder / "project.py").write_text(PROJECT)
        (folder / "pipeline.py").write_text(PIPELINE)
    for folder in (outside, checkout, work):
        (folder / "code.py").write_text(PROJECT)
        (folder / "stages.py").write_text(PIPELINE)
    (work / "link.py").symlink_to(outside / "code.py")
    (work / "linked").symlink_to(outside / "folder")
    (work / "half").mkdir()
    for name in ("project.py", "pipeline.py"):
        (work / "half" / name).symlink_to(outside / "folder" / name)
    (work / "up.py").symlink_to(checkout / "code.py")
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    return tmp_path / "executed"


ESCAPES = [
    "{tmp}/outside/code.py",
    "{tmp}/outside/folder",
    "{tmp}/checkout/work/code.py",
    "../../outside/code.py",
    "inner/../../../outside/code.py",
    "..",
    "link.py",
    "linked",
    "half",
    "mlruns/0/artifacts",
    "~/code.py",
    "~root/code.py",
    "C:/code.py",
    "C:\\code.py",
    "..\\..\\outside\\code.py",
    "\\\\server\\share\\code.py",
    "//server/share/code.py",
    "%2e%2e/%2e%2e/outside/code.py",
    "file://{tmp}/outside/code.py",
    "",
    "code.py\0",
    "a" * 300 + ".py",
    "a/" * 3000 + "code.py",
    ".",
]


@pytest.mark.parametrize("word", ESCAPES)
def test_a_recorded_word_that_leads_elsewhere_is_never_executed(word: str, executed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mltrain train PROJECT --resume-run"):
        find(word.format(tmp=tmp_path), recorded=True)
    assert not executed.exists()


@pytest.mark.parametrize("word", [word.replace("code.py", "stages.py") for word in ESCAPES])
def test_a_recorded_pipeline_that_leads_elsewhere_is_never_executed(word: str, executed: Path, tmp_path: Path) -> None:
    word = word.format(tmp=tmp_path)
    with pytest.raises(UsageError, match="mltrain pipeline PIPELINE --run ID"):
        find_pipeline(word, recorded=True)
    with pytest.raises(UsageError):
        find(f"{word}:first", recorded=True)
    assert not executed.exists()


@pytest.mark.parametrize("word", ["code.py", "inner", "./inner", "work/code.py", "work/inner", "up.py"])
def test_a_recorded_path_below_the_working_directory_or_the_git_root_is_found(word: str, executed: Path) -> None:
    assert find(word, recorded=True).build is not None
    assert executed.exists()


@pytest.mark.parametrize("word", ["stages.py", "inner", "work/stages.py"])
def test_so_is_a_recorded_stage(word: str, executed: Path) -> None:
    assert find(f"{word}:first", recorded=True).name.endswith(":first")
    assert executed.exists()


def test_a_project_at_the_very_root_is_found_again(executed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("inner")
    subprocess.run(["git", "init", "-q"], check=True)
    assert find(find(".").name, recorded=True).name == "."


@pytest.mark.parametrize("word", ["{tmp}/outside/code.py", "../../outside/code.py", "link.py", "linked", "half"])
def test_the_user_s_own_word_is_free(word: str, executed: Path, tmp_path: Path) -> None:
    assert find(word.format(tmp=tmp_path)).build is not None
    assert executed.exists()


@pytest.mark.parametrize("word", ["a" * 300, "a" * 5000 + ".py", "a" * 300 + ":first", "code.py\0", "loop"])
def test_a_word_that_no_file_can_have_is_no_project(word: str, executed: Path) -> None:
    Path("loop").symlink_to("loop")
    for lookup in (find, find_pipeline):
        with pytest.raises(UsageError, match="There is no p"):
            lookup(word)


def test_no_command_executes_what_a_run_names_elsewhere(workplace: Workplace, tmp_path: Path) -> None:
    done = workplace.mltrain("train", "tiny.py", "epochs=1")
    assert done.code == 0, done.err
    executed, evil = tmp_path / "executed", tmp_path / "evil"
    evil.mkdir()
    (evil / "project.py").write_text(PROJECT)
    (evil / "pipeline.py").write_text(PIPELINE)
    client = MlflowClient(workplace.uri)
    run = client.get_run(done.run_id)
    file = Path(run.info.artifact_uri) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "project": str(evil)}))
    client.set_tag(done.run_id, PROJECT_TAG, str(evil))
    for words in (
        ["train", "--resume-run", done.run_id, "epochs=2"],
        ["train", "--fork-run", done.run_id],
        ["evaluate", done.run_id],
    ):
        refused = workplace.mltrain(*words, EXECUTED=str(executed))
        assert (refused.code, executed.exists()) == (2, False), refused.err
        assert "is not executed" in refused.err
    assert run.data.params == client.get_run(done.run_id).data.params  # no attempt was claimed
    named = workplace.mltrain("train", "tiny.py", "--resume-run", done.run_id, "epochs=2")
    assert named.code == 0, named.err
    client.set_tag(done.run_id, PIPELINE_TAG, "pipe")
    for words in (
        ["pipeline", "--run", done.run_id, "--mode", "resume"],
        ["pipeline", "--run", done.run_id, "--status"],
        ["train", "--resume-run", done.run_id],
    ):
        refused = workplace.mltrain(*words, EXECUTED=str(executed))
        assert (refused.code, executed.exists()) == (2, False), refused.err
