import random

import pytest

from mltrain.compat.private import is_made_up
from mltrain.run.naming import experiment_for, renamed, run_name, short


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


def test_a_name_has_the_project_what_differs_and_the_time() -> None:
    words = run_name("examples/net.py", "quick", {"lr": 1e-3, "epochs": "5"}).split()
    assert words[:-1] == ["net", "quick", "lr=0.001", "epochs=5"]
    assert words[-1].replace("-", "").isdecimal()


def test_a_name_leaves_out_places_and_what_is_long_or_shown_elsewhere() -> None:
    given = {"image_path": "/data/x", "w": "C:\\x", "note": "n" * 40, "experiment": "e", "run_name": "r", "lr": "1e-3"}
    assert run_name("net", None, given).split()[:-1] == ["net", "lr=1e-3"]
    assert len(run_name("net", None, {f"key_{n}": n for n in range(100)})) < 130


def test_no_name_is_drawn_from_the_random_numbers_of_the_training() -> None:
    before = random.getstate()
    run_name("net")
    assert random.getstate() == before


def test_names_that_mlflow_makes_up_are_recognised() -> None:
    from mlflow.utils.name_utils import _generate_random_name

    state = random.getstate()
    names = [_generate_random_name() for _ in range(50)]
    random.setstate(state)
    assert all(map(is_made_up, names))
    assert not any(
        map(is_made_up, ["", "wistful", "net-small-3", "wistful-rat-", "wistful-rat-123-x", "rat-wistful-1"])
    )


def test_only_a_made_up_name_of_a_run_is_replaced() -> None:
    assert renamed("wistful-rat-123", None, "net lr=1") == "net lr=1"
    assert renamed("wistful-rat-123", "mine", "net lr=1") == "mine"
    assert renamed("chosen", None, "net lr=1") is None
    assert renamed(None, None, "net lr=1") == "net lr=1"
