import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

import mltrain
from mltrain.cli import app
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.compat.private import is_generated_name
from mltrain.delivery.creation import RunSpec
from mltrain.errors import RunNotFound
from mltrain.ownership.run_folder import home_of
from mltrain.run.naming import experiment_for, full_id, recorded_id, renamed, run_name, short
from mltrain.tracking.client import connect
from mltrain.tracking.tags import REQUEST_ID_TAG
from tests.support import tiny
from tests.support.database import many, use_database


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("segmentation", "segmentation"),
        ("examples/my_unet.py", "my_unet"),
        ("projects/wear/", "wear"),
        ("a\\b\\net.py", "net"),
        (".", "project"),
    ],
)
def test_a_project_is_called_without_the_way_to_it(project: str, expected: str) -> None:
    assert short(project) == expected


def test_runs_of_a_project_go_to_an_experiment_of_its_name(nothing_chosen: pytest.MonkeyPatch) -> None:
    assert experiment_for("examples/net.py", None) == "net"
    assert experiment_for("net.py", "wanted") == "wanted"


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_the_environment_chooses_the_experiment_before_the_project_does(
    variable: str, nothing_chosen: pytest.MonkeyPatch
) -> None:
    nothing_chosen.setenv(variable, "7")
    assert experiment_for("net.py", None) is None
    assert experiment_for("net.py", "wanted") == "wanted"


def test_a_name_has_the_time_what_differs_and_the_project() -> None:
    day, time, *words = run_name("examples/net.py", "quick", {"lr": 1e-3, "epochs": "5"}).split()
    assert words == ["lr=0.001", "epochs=5", "quick", "net"]
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d", f"{day} {time}")


def test_what_differs_stands_where_a_list_that_cuts_names_shows_it() -> None:
    given = {"epochs": "2", "max_to_keep": "3", "items": "16", "lr": "4e-3", "unknown": "1"}
    name = run_name(
        "a_project_with_a_long_name.py", None, given, order=("lr", "items", "seed", "epochs", "max_to_keep")
    )
    assert " lr=4e-3" in name[:20]
    assert name.split()[2:-1] == ["lr=4e-3", "items=16", "epochs=2", "max_to_keep=3", "unknown=1"]


def test_a_name_leaves_out_places_and_what_is_long_or_shown_elsewhere() -> None:
    given = {"image_path": "/data/x", "w": "C:\\x", "note": "n" * 40, "experiment": "e", "run_name": "r", "lr": "1e-3"}
    assert run_name("net", None, given).split()[2:] == ["lr=1e-3", "net"]
    assert len(run_name("net", None, {f"key_{n}": n for n in range(100)})) <= 100


def test_no_name_is_drawn_from_the_random_numbers_of_the_training() -> None:
    before = random.getstate()
    run_name("net")
    assert random.getstate() == before


def test_names_that_mlflow_makes_up_are_recognised() -> None:
    from mlflow.utils.name_utils import _generate_random_name

    state = random.getstate()
    names = [_generate_random_name() for _ in range(50)]
    random.setstate(state)
    assert all(map(is_generated_name, names))
    assert not any(
        map(is_generated_name, ["", "wistful", "net-small-3", "wistful-rat-", "wistful-rat-123-x", "rat-wistful-1"])
    )


def test_only_a_made_up_name_of_a_run_is_replaced() -> None:
    assert renamed("wistful-rat-123", None, "net lr=1") == "net lr=1"
    assert renamed("wistful-rat-123", "mine", "net lr=1") == "mine"
    assert renamed("chosen", None, "net lr=1") is None
    assert renamed(None, None, "net lr=1") == "net lr=1"


TINY = Path(tiny.__file__)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_database(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def trained(store: Path) -> str:
    return run_training(Request(project=str(TINY), overrides={"epochs": 1})).run_id


def called(run_id: str, new: str, store: Path) -> None:
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        for table in ("runs", "tags"):
            database.execute(f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", (new, run_id))
        database.commit()


def test_a_prefix_that_one_run_has_is_its_id(store: Path) -> None:
    first, second = many(store, 2, {})
    called(first, "abcd0" + first[5:], store)
    called(second, "abcd1" + second[5:], store)
    server = connect()
    for length in (5, 8, 31, 32):
        assert full_id(server, ("abcd0" + first[5:])[:length]) == "abcd0" + first[5:]
    assert full_id(server, ("abcd1" + second[5:])[:7].upper()) == "abcd1" + second[5:]
    with pytest.raises(RunNotFound, match=r"'abcd' is ambiguous.*abcd0\w+ \(.*abcd1\w+ \("):
        full_id(server, "abcd")


def test_a_run_of_any_experiment_is_found_by_its_prefix(store: Path) -> None:
    client = MlflowClient()
    run = client.create_run(client.create_experiment("another")).info.run_id
    assert full_id(connect(), run[:9]) == run


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("abc", "at least the first 4"),
        ("", "is not the id of a run"),
        ("fine-tuning", "is not the id of a run"),
        ("0123456789abcdef0123456789abcdef0", "is not the id of a run"),
        ("%%%%%", "is not the id of a run"),
        ("٣٣٣٣", "is not the id of a run"),
        ("abcdef", "Not found in sqlite.*begins with 'abcdef'"),
    ],
)
def test_what_names_no_run_is_refused_with_what_was_expected(word: str, problem: str, store: Path) -> None:
    with pytest.raises(RunNotFound, match=problem):
        full_id(connect(), word)


def test_a_deleted_run_does_not_make_a_prefix_ambiguous(store: Path) -> None:
    kept, deleted = many(store, 2, {})
    called(kept, "abcd0" + kept[5:], store)
    called(deleted, "abcd1" + deleted[5:], store)
    MlflowClient().delete_run("abcd1" + deleted[5:])
    assert full_id(connect(), "abcd") == "abcd0" + kept[5:]
    with pytest.raises(RunNotFound, match="Not found in"):
        full_id(connect(), "abcd1")


def test_a_prefix_of_the_provisional_id_of_a_run_is_understood(store: Path) -> None:
    server, (created,) = connect(), many(store, 1, {})
    spec = RunSpec(None, "born offline", {}, run_id=created)
    spec.save(home_of(server, spec.id))
    assert full_id(server, spec.id[:10]) == full_id(server, spec.id) == created
    waiting = RunSpec(None, "still offline", {})
    waiting.save(home_of(server, waiting.id))
    with pytest.raises(RunNotFound, match="mltrain sync"):
        full_id(server, waiting.id[:10])


COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "checkpoints": lambda run, _: ["checkpoints", run],
    "inspect": lambda run, _: ["inspect", run],
    "verify": lambda run, _: ["verify", run],
    "pin": lambda run, _: ["pin", run, "--checkpoint", "latest"],
    "unpin": lambda run, _: ["unpin", run, "--checkpoint", "latest"],
    "prune": lambda run, _: ["prune", run, "--keep", "Latest(1)", "--yes"],
    "evaluate": lambda run, _: ["evaluate", run],
    "pull": lambda run, folder: ["pull", run, "--to", folder],
    "compare": lambda run, _: ["compare", run, run],
    "train": lambda run, _: ["train", f"resume_run={run}", "epochs=1"],
    "fork": lambda run, _: ["train", "--fork-run", run, "epochs=2"],
}


def test_a_provisional_id_of_another_host_is_found_by_the_tag_of_its_run(store: Path) -> None:
    provisional = "ab" * 16
    (created,) = many(store, 1, {REQUEST_ID_TAG: provisional})
    assert recorded_id(connect(), provisional) == recorded_id(connect(), created) == created
    with pytest.raises(RunNotFound):
        recorded_id(connect(), "cd" * 16)
    MlflowClient().delete_run(created)
    for named in (provisional, created):
        with pytest.raises(RunNotFound):
            recorded_id(connect(), named)


@pytest.mark.slow
def test_everything_that_takes_a_run_takes_a_prefix_and_refuses_one_of_no_run(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, nobody = trained[:8], "0123abcd" if trained[0] != "0" else "f123abcd"
    for name, words in COMMANDS.items():
        with pytest.raises(SystemExit) as ended:
            app(words(prefix, str(tmp_path / "to")))
        assert ended.value.code == 0, (name, capsys.readouterr())
        with pytest.raises(RunNotFound, match="Not found in"):
            app(words(nobody, str(tmp_path / "to")))
    assert f"run_id={trained}" in capsys.readouterr().out
    assert not [tag for tag in MlflowClient().get_run(trained).data.tags if tag.startswith("mltrain.pin.")]
    assert mltrain.load_best(prefix)
    with mltrain.CheckpointManager(prefix) as manager:
        assert manager.run.id == trained
    for call in (mltrain.load_best, mltrain.CheckpointManager, lambda run: mltrain.train(resume_run=run)):
        with pytest.raises(RunNotFound, match="Not found in"):
            call(nobody)
