"""The errors of docs/errors.md as a user meets them: exit code, message and next command; never a traceback."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.folders import flip
from tests.support.workplace import Done, Workplace


@pytest.fixture(scope="module")
def trained(fork_server: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, str]:
    workplace = Workplace(tmp_path_factory.mktemp("errors") / "here", fork_server)  # type: ignore[arg-type]
    (workplace.folder / "data").mkdir()
    (workplace.folder / "data" / "file").write_text("one")
    done = workplace.mltrain("train", "tiny.py", "epochs=2", "data=data")
    assert done.code == 0, done.err
    return workplace, done.run_id


def refused(done: Done, code: int, *said: str) -> None:
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err


def test_an_unknown_key_is_refused_with_the_nearest_one(trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("train", "tiny.py", "epoch=3"), 2, "Unknown key 'epoch'", "'epochs'")


def test_a_wrong_type_is_refused_with_what_was_expected(trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("train", "tiny.py", "epochs=many"), 2, "epochs='many'", "integer")


def test_an_unknown_project_is_refused_with_those_there_are(trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("train", "segmentatoin"), 2, "segmentation")


def test_an_unknown_preset_is_refused_with_those_there_are(trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("train", "tiny.py", "--preset", "quik"), 2, "quick")


@pytest.mark.parametrize("run_id", ["0" * 32, "../../etc", "abc"])
def test_no_such_run(run_id: str, trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("train", "--resume-run", run_id), 2, "mltrain runs")
    refused(trained[0].mltrain("checkpoints", run_id), 2, "mltrain runs")


@pytest.mark.parametrize("which", ["epoch:7", "step:999", "step-000000999-a01"])
def test_no_such_checkpoint_lists_those_there_are(which: str, trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    refused(workplace.mltrain("inspect", run_id, "--checkpoint", which), 3, which, "step-000000012-a01")
    refused(workplace.mltrain("train", "--resume-run", run_id, "--resume-from", which), 3, "step-000000012-a01")


def test_a_word_that_names_no_checkpoint_is_refused_with_the_words_there_are(trained: tuple[Workplace, str]) -> None:
    refused(trained[0].mltrain("evaluate", trained[1], "--checkpoint", "newest"), 2, "latest, best")


def test_another_architecture_is_refused_with_what_differs(trained: tuple[Workplace, str]) -> None:
    done = trained[0].mltrain("train", "--resume-run", trained[1], "epochs=3", "hidden=17")
    refused(done, 8, "of another shape", "0.weight (16, 6) here (17, 6)")


def test_changed_data_are_refused_unless_allowed(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    (workplace.folder / "data" / "file").write_text("other")
    refused(workplace.mltrain("train", "--resume-run", run_id, "epochs=3"), 2, "--allow-change")
    allowed = workplace.mltrain("train", "--resume-run", run_id, "epochs=3", "--allow-change")
    assert allowed.code == 0, allowed.err


def damaged(workplace: Workplace) -> tuple[str, Path]:
    done = workplace.mltrain("train", "tiny.py", "epochs=2")
    folder = workplace.folder / "mlruns" / "0" / done.run_id / "artifacts" / "checkpoints"
    return done.run_id, folder


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(workplace: Workplace) -> None:
    run_id, folder = damaged(workplace)
    flip(folder / "step-000000012-a01" / "state.safetensors")
    verified = workplace.mltrain("verify", run_id)
    assert verified.code == 3
    assert "step-000000012-a01: state.safetensors" in verified.out
    resumed = workplace.mltrain("train", "--resume-run", run_id)
    assert resumed.code == 0, resumed.err
    assert "step-000000012-a01 is damaged" in resumed.err
    assert "from epoch 1 (step-000000006-a01)" in resumed.out


def test_pulling_a_damaged_best_takes_the_next_one_and_says_so(workplace: Workplace) -> None:
    run_id, folder = damaged(workplace)
    best = next(r for r in workplace.mltrain("checkpoints", run_id, "--json").json if "best" in r["is"])["checkpoint"]
    flip(folder / best / "model.safetensors")
    pulled = workplace.mltrain("pull", run_id, "--to", "model", "--json")
    assert pulled.code == 0, pulled.err
    assert f"{best} is damaged" in pulled.err
    assert pulled.json["checkpoint"] != best


def test_when_no_checkpoint_is_intact_nothing_starts_from_zero(workplace: Workplace) -> None:
    run_id, folder = damaged(workplace)
    for checkpoint in folder.iterdir():
        flip(checkpoint / "model.safetensors")
    refused(workplace.mltrain("train", "--resume-run", run_id, "epochs=3"), 3, f"mltrain verify {run_id}")


def test_a_checkpoint_without_history_loads_and_says_so(workplace: Workplace) -> None:
    from mlflow import MlflowClient

    from mltrain.manager import CheckpointManager
    from mltrain.run import opening as runs
    from mltrain.tracking.client import TrackingClient

    run_id, _ = damaged(workplace)
    server = TrackingClient(workplace.uri, MlflowClient(workplace.uri))
    run = runs.resume(server, run_id, take_over=False, launcher=None)
    manager = CheckpointManager(run)
    parts = manager.load()
    assert parts is not None
    parts = {name: part for name, part in parts.items() if name not in ("history", "stopping")}
    parts["progress"]["step"] += 1
    params = (
        workplace.folder / "mlruns/0" / run_id / "artifacts/checkpoints/step-000000012-a01/params.json"
    ).read_bytes()
    manager.save(parts, step=13, epoch=2, kind="epoch", extra={"params.json": params})
    manager.close()
    done = workplace.mltrain("train", "--resume-run", run_id, "epochs=3")
    assert done.code == 0, done.err
    assert "lacks history, stopping" in done.err


def test_a_file_with_code_in_it_is_not_read(workplace: Workplace) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (Path("executed").write_text, ("boom",))

    torch.save({"model": {"a": torch.ones(1)}, "bomb": Bomb()}, workplace.folder / "bomb.pth")
    refused(workplace.mltrain("import", "bomb.pth"), 3, "without running code")
    assert not (workplace.folder / "executed").exists()


def test_a_store_that_cannot_be_reached_is_an_error_with_a_code(workplace: Workplace) -> None:
    done = workplace.mltrain("runs", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    refused(done, 6, "127.0.0.1:9")


def test_a_retention_policy_that_cannot_be_read_points_at_the_word(workplace: Workplace) -> None:
    refused(workplace.mltrain("train", "tiny.py", "retention=Latest(3) | Newest(2)"), 2, "Newest", "^")


ROOT = Path(__file__).parents[2]


def messages() -> list[str]:
    """Return the messages in the second column of the tables."""
    rows = re.findall(
        r"^\| `\w+` \| (.*?) \| ", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return [message for cell in rows for message in re.findall("`([^`]+)`", cell)]


def literals() -> str:
    """Return all strings of the package, a line each. An ellipsis stands for each formatted value."""
    found = []
    for file in (ROOT / "mltrain").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            found.append("".join(text for text in texts if isinstance(text, str)).replace("\n", " "))
    return "\n".join(found)


def test_each_message_of_the_documentation_is_in_the_source() -> None:
    source, quoted = literals(), messages()
    assert len(quoted) > 80
    patterns = {message: ".*".join(map(re.escape, message.strip("… ").split("…"))) for message in quoted}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, source)] == []


def test_errors_of_the_documentation_are_the_classes_there_are() -> None:
    from mltrain import errors

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    raised = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MltrainError) and not kind.__subclasses__()
    }
    assert {name for name in raised if f"`{name}`" not in page} == set()


def test_json_is_json_also_when_there_is_nothing(workplace: Workplace) -> None:
    assert json.loads(workplace.mltrain("runs", "--json").out) == []
    shutil.rmtree(workplace.folder / "home", ignore_errors=True)
    assert json.loads(workplace.mltrain("sync", "--json").out) == []


HANGING = """
import sys, threading
from mltrain.cli import main
threading.Thread(target=threading.Event().wait, name="mltrain-store").start()
sys.argv = ["mltrain", *{words}]
main()
"""


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["train", "no-such-project.py"], 2)])
def test_a_thread_that_hangs_does_not_keep_the_process_from_ending(words: list[str], code: int, tmp_path: Path) -> None:
    program = HANGING.format(words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout or done.stderr  # what was printed has come out


@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("checkpoints", "ID"),
        ("verify", "ID"),
        ("inspect", "ID"),
        ("evaluate", "ID", "--to", "report"),
        ("pull", "ID", "--to", "model"),
        ("prune", "ID"),
        ("pin", "ID", "--checkpoint", "latest"),
        ("watch", "ID"),
        ("compare", "ID", "ID"),
        ("pipeline", "--run", "ID", "--status"),
        ("train", "--resume-run", "ID"),
        ("train", "tiny.py", "--fork-run", "ID"),
    ],
    ids=" ".join,
)
def test_a_mistyped_database_is_not_created(
    words: tuple[str, ...], trained: tuple[Workplace, str], tmp_path: Path
) -> None:
    workplace, run_id = trained
    missing = tmp_path / "mistyped" / "mlflow.db"
    uri = f"sqlite:///{missing}"
    done = workplace.mltrain(*(run_id if word == "ID" else word for word in words), MLFLOW_TRACKING_URI=uri)
    assert not missing.parent.exists(), done.err
    refused(done, 0 if words == ("runs",) else 2, *(["does not exist"] if "ID" in words else []))
