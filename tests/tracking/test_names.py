"""MLflow accepts the names that replace refused ones."""

import logging
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric, _validate_param

from mltrain.delivery.images import ui_stem
from mltrain.tracking.names import Names, key, picture_name

texts = st.text(max_size=300) | st.text("./ -:_@aB\n", max_size=20)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_mlflow_accepts_every_key(name: str) -> None:
    _validate_metric(key(name), 1.0, 0, 0)
    _validate_param(key(name), "1")
    assert "\n" not in key(name)
    assert key(key(name)) == key(name)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_every_name_of_a_picture_can_be_that_of_files(name: str) -> None:
    ui_stem(picture_name(name), 1, 1, "identifier")
    assert picture_name(picture_name(name)) == picture_name(name)


@pytest.mark.parametrize("name", ["val/loss", "a b", "Größe/x", "a.b-c_d", "x" * 250, "a/...", "-x", " x"])
def test_a_name_that_mlflow_accepts_stays_as_it_is(name: str) -> None:
    _validate_metric(name, 1.0, 0, 0)
    assert key(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/F1@0.5", "val/F1_0.5"),
        ("dice (liver)", "dice _liver_"),
        ("val//loss", "val/loss"),
        ("/val/loss/", "val/loss"),
        ("a/../b", "a/__/b"),
        ("..", "__"),
        (".", "_"),
        ("", "_"),
        ("a\nb", "a_b"),
    ],
)
def test_the_rule_is_the_stated_one(name: str, expected: str) -> None:
    assert key(name) == expected


@pytest.mark.parametrize("rule", [key, picture_name])
def test_no_two_names_become_one(rule: Callable[[str], str]) -> None:
    names = ["f(1)", "f[1]", "f_1_", "x" * 300 + "a", "x" * 300 + "b", "a//b", "a/b", "", "_", "/"]
    several = Names("metric", rule)
    made = list(several.translated(dict.fromkeys(names, 0)))
    assert len(set(made)) == len(names)
    assert all(rule(one) == one for one in made)
    assert [several.translated({name: 0}) for name in names] == [{one: 0} for one in made]
    assert several.translated({"a/b": 1, "f_1_": 2}) == {"a/b": 1, "f_1_": 2}, "what MLflow accepts keeps its name"


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=8, unique=True))
def test_whatever_comes_together_stays_apart(names: list[str]) -> None:
    assert len(Names("metric", key).translated(dict.fromkeys(names, 0))) == len(names)


def test_a_translated_name_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    names = Names("metric", key)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            names.translated({"val/F1@0.5": 1.0, "val/loss": 1.0})
    assert caplog.text.count("'val/F1@0.5'; the run has it as 'val/F1_0.5'") == 1
    assert "val/loss" not in caplog.text
