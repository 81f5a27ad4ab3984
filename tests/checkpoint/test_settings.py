"""How checkpoints are kept, and where: an invalid argument is refused with its name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.settings import Settings, newest_and_best, run_or_folder
from mltrain.errors import UsageError

POLICY = Latest(2) | Best(1)
RUN = SimpleNamespace(begin_attempt=lambda origin: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy": Latest}, "policy="),
        ({"policy": "Latest(3)"}, "policy='Latest"),
        ({"metric": ""}, "metric=''"),
        ({"metric": 3}, "metric=3"),
        ({"mode": "least"}, "mode='least' is invalid. Expected 'min' or 'max'."),
        ({"staging_gigabytes": 0}, "staging_gigabytes=0"),
        ({"staging_gigabytes": True}, "staging_gigabytes=True"),
        ({"staging_gigabytes": float("nan")}, "staging_gigabytes=nan"),
    ],
)
def test_an_invalid_setting_is_refused_with_its_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Settings(**{"policy": POLICY, **arguments})
    assert words in str(refusal.value)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3", None])
def test_a_number_to_keep_is_a_whole_number_of_at_least_1(count: Any) -> None:
    with pytest.raises(UsageError, match=r"max_to_keep=.* Expected a whole number of at least 1"):
        newest_and_best(count)


def test_the_newest_and_the_best_are_kept() -> None:
    assert newest_and_best(2) == POLICY


@pytest.mark.parametrize(
    ("run", "save_dir", "expected"),
    [
        (None, None, (None, None)),
        ("a1b2c3", None, ("a1b2c3", None)),
        (None, "/tmp/a", (None, Path("/tmp/a"))),
        (None, Path("/tmp/a"), (None, Path("/tmp/a"))),
        (None, "a", (None, Path.cwd() / "a")),
        (None, "~/a", (None, Path.home() / "a")),
        ("/tmp/a", None, (None, Path("/tmp/a"))),
        (Path("a"), None, (None, Path.cwd() / "a")),
        (RUN, None, (RUN, None)),
    ],
)
def test_a_run_is_an_id_and_a_folder_is_a_path_or_a_text_with_a_slash(run: Any, save_dir: Any, expected: Any) -> None:
    assert run_or_folder(run, save_dir) == expected


@pytest.mark.parametrize(
    ("run", "save_dir", "words"),
    [
        ("./a", "./b", "run='./a' is invalid. Expected the id of a run, or save_dir= alone."),
        ("a1b2c3", "./b", "save_dir='./b' is invalid. Expected a folder, and no run= beside it."),
        (RUN, "./b", "save_dir='./b'"),
        (None, 3, "save_dir=3"),
        (3, None, "run=3 is invalid. Expected the id of a run."),
        ({"id": 1}, None, "run={'id': 1}"),
    ],
)
def test_what_is_neither_or_both_is_refused(run: Any, save_dir: Any, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        run_or_folder(run, save_dir)
    assert words in str(refusal.value)
