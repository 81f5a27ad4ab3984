"""The words of ``mltrain.train``."""

from pathlib import Path
from typing import Any

import pytest

import mltrain
from mltrain import Best, Latest
from mltrain.commands.train_request import request_of
from mltrain.errors import UsageError
from mltrain.project import find
from tests.support import tiny

TINY = tiny.__file__


def test_words_are_options_or_keys_of_the_configuration() -> None:
    request = request_of(
        TINY, {"lr": 3e-4, "epochs": 2, "name": "first", "preset": "quick", "config": "a.yaml", "take_over": True}
    )
    assert request.project is not None
    assert not isinstance(request.project, str)
    assert request.overrides == {"lr": 3e-4, "epochs": 2, "run_name": "first"}
    assert (request.preset, request.files, request.take_over) == ("quick", (Path("a.yaml"),), True)


def test_a_project_itself_and_several_files_are_taken_as_they_are() -> None:
    project = find(TINY)
    request = request_of(project, {"config": ["a.yaml", Path("b.yaml")]})
    assert request.project is project
    assert request.files == (Path("a.yaml"), Path("b.yaml"))


def test_a_policy_may_be_an_object() -> None:
    assert request_of(None, {"retention": Latest(2) | Best(1)}).overrides == {"retention": "Latest(2) | Best(1)"}


@pytest.mark.parametrize(
    ("project", "words", "name"),
    [(pytest, {}, "project"), (None, {"config": {"epochs": 1}}, "config"), (None, {"config": 3}, "config")],
)
def test_what_is_no_project_and_no_file_is_refused(project: Any, words: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}=.* is invalid. Expected"):
        request_of(project, words)


def test_a_resume_needs_no_project() -> None:
    request = request_of(None, {"resume_run": "0" * 32, "epochs": 9})
    assert (request.project, request.resume_run, request.overrides) == (None, "0" * 32, {"epochs": 9})


@pytest.mark.parametrize(("word", "nearest"), [("epoch", "epochs"), ("resume_rn", "resume_run"), ("lr.rate", None)])
def test_an_unknown_word_is_refused_with_the_nearest(word: str, nearest: str | None) -> None:
    words: dict[str, Any] = {word: 1}
    if nearest is None:
        assert request_of(TINY, words).overrides == words  # a key of a key is refused with the configuration
        return
    with pytest.raises(UsageError, match=rf"'{word}' is neither an option of train\(\).*Did you mean '{nearest}'\?"):
        mltrain.train(TINY, **words)


def test_a_key_of_the_project_comes_before_an_option_of_the_same_name() -> None:
    class Config(mltrain.Config):
        name: str = "x"

    found = find(TINY)
    project = type(found)(found.name, Config, found.build, found.place)
    assert request_of(project, {"name": "y"}).overrides == {"name": "y"}
