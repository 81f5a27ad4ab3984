"""``mltrain train``: mistakes, forks, weights as files, and a closed pipe."""

import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mltrain.cli import main
from tests.support.workplace import Workplace


def test_weights_are_also_files_in_a_local_folder(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    latest = load_file(workplace.folder / "weights" / "latest.safetensors")
    assert latest["0.weight"].equal(workplace.weights(run_id)["model"]["0.weight"])
    assert (workplace.folder / "weights" / "best.safetensors").is_file()


def test_a_fork_is_a_new_run_that_names_its_parent_and_frees_the_source_again(workplace: Workplace) -> None:
    source = workplace.mltrain("train", "tiny.py", "epochs=2").run_id
    fork = workplace.mltrain("train", "--fork-run", source, "--resume-from", "epoch:1", "epochs=3", "lr=0.5")
    assert fork.code == 0, fork.err
    assert fork.run_id != source
    from mlflow import MlflowClient

    client = MlflowClient(workplace.uri)
    tags = client.get_run(fork.run_id).data.tags
    assert tags["mltrain.forked_from"] == f"{source}/step-000000006-a01"
    assert tags["mlflow.parentRunId"] == source
    assert not [tag for tag in client.get_run(source).data.tags if tag.startswith("mltrain.pin.")]
    assert workplace.points(source)["epoch"] == [(6, 1.0), (12, 2.0)]
    assert workplace.points(fork.run_id)["epoch"] == [(12, 2.0), (18, 3.0)]


@pytest.mark.faults
def test_closed_output_does_not_end_a_training(workplace: Workplace, tmp_path: Path) -> None:
    import subprocess
    import sys

    words = f"{sys.executable} -m mltrain train tiny.py epochs=3 | head -1"
    subprocess.run(["bash", "-c", words], cwd=workplace.folder, env=workplace.environment, check=True, timeout=120)
    assert workplace.mltrain("runs", "--json").json[0]["state"] == "finished"


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_a_closed_terminal_stops_a_training_at_a_checkpoint(workplace: Workplace) -> None:
    import pty

    child, master = pty.fork()
    if child == 0:
        os.chdir(workplace.folder)
        words = [sys.executable, "-m", "mltrain", "train", "tiny.py", "epochs=100000"]
        os.execve(sys.executable, words, {**workplace.environment, "TERM": "xterm"})
    said = ""
    while "epoch    1/" not in said:
        said += os.read(master, 65536).decode(errors="replace")
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    (run,) = workplace.mltrain("runs", "--json").json
    assert run["state"] == "stopped"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there: nothing of this needs anybody
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "The command names no project. Try: mltrain train PROJECT"),
        (["train", "resume_run=''", "--config", ""], "The command names no project"),
        (["train", "--resume-run", "a", "--fork-run", "b"], "Expected one of the two"),
        (["train", "resume_run=a", "fork_run=b"], "Expected one of the two"),
        (["train", "no-such-project", "--lr", "3"], "There is no project 'no-such-project'"),
        (["train", "project=no-such-project", "lr=3"], "There is no project 'no-such-project'"),
        (["train", "--default-project", "no-such-default"], "There is no project 'no-such-default'"),
        (["train", "no-such-project", "--default-project", "segmentation"], "There is no project 'no-such-project'"),
        (
            ["train", "cardiac", "epochs=1"],
            "'cardiac' is a pipeline. Try: mltrain pipeline cardiac",
        ),
        (["train", "--resume-run", "../../etc"], "is not the id of a run"),
        (["train", "resume_run=ABCDEFG"], "is not the id of a run"),
        (["train", "one", "two"], "is a second project after 'one'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], said: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mltrain", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert said in printed.err
    assert printed.err.startswith("Error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not (here / "home").exists(), "nothing was begun"
