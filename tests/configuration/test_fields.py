"""Values of fields as people write them, and forbidden names."""

from typing import Any, Literal

import pytest

from mltrain.config import Config
from mltrain.configuration.fields import NOT_GIVEN, RESERVED
from mltrain.errors import ConfigError
from tests.support.configurations import Example


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lr", "3e-4", 3e-4),
        ("epochs", "12", 12),
        ("title", "no", "no"),
        ("title", "1e-3", "1e-3"),
        ("title", "null", "plain"),
        ("title", "", ""),
        ("note", "none", None),
        ("note", "null", None),
        ("note", "''", None),
        ("note", "none of these", "none of these"),
        ("augment", "no", False),
        ("augment", "true", True),
        ("sizes", "[3, 4]", [3, 4]),
        ("weights", "{a: 0.5}", {"a": 0.5}),
        ("amp", "bf16", "bf16"),
        ("save_every_minutes", "2.5", 2.5),
        ("lr", "", 1e-3),
        ("early_stopping_patience", "none", None),
    ],
)
def test_a_text_on_the_command_line_is_read_by_the_type_of_its_field(key: str, text: str, value: Any) -> None:
    assert getattr(Example.load(overrides={key: text}), key) == value


def test_no_field_has_a_name_that_is_reserved() -> None:
    assert not RESERVED & Config.model_fields.keys()


@pytest.mark.parametrize("value", ["[" * 5000, "{" * 5000, "[*x]", "[!!python/name:os.system ]", "{a: 1, a: 2}", "[1"])
def test_a_hostile_value_on_the_command_line_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        Example.load(overrides={"weights": value})


def test_none_is_a_choice_where_a_field_lists_it() -> None:
    class Choice(Config):
        flips: Literal["none", "both"] = "both"
        resize: Literal["stretch", "none"] | None = "stretch"

    chosen = Choice.load(overrides={"flips": "none", "resize": "none"})
    assert (chosen.flips, chosen.resize) == ("none", "none")
    assert Choice.load(overrides={"flips": "", "resize": "null"}) == Choice(resize=None)


@pytest.mark.parametrize("word", sorted(NOT_GIVEN))
def test_every_word_for_not_given_leaves_an_optional_field_empty(word: str) -> None:
    assert Example.load(overrides={"experiment": word}).experiment is None
