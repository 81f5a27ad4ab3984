"""A training names keys without effect when it begins."""

from typing import Any

import pytest

from mltrain.commands.checks import warn_without_effect
from tests.support.tiny import Config


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"early_stopping_metric": "val/f1"},
            "early_stopping_metric=val/f1 has no effect without early_stopping_patience",
        ),
        ({"early_stopping_mode": "max"}, "early_stopping_mode=max has no effect without early_stopping_patience"),
        ({"early_stopping_min_delta": 0.1}, "Try: early_stopping_patience=10"),
        ({"nonfinite_limit": 3}, "nonfinite_limit=3 has no effect without on_nonfinite"),
        ({"max_to_keep": 9, "retention": "Latest(2)"}, "max_to_keep=9 has no effect beside retention='Latest(2)'"),
    ],
)
def test_a_key_without_effect_is_named_with_the_one_that_gives_it_a_meaning(
    keys: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_without_effect(Config(**keys))
    (record,) = caplog.records
    assert expected in record.message


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"early_stopping_patience": 3, "early_stopping_metric": "val/f1", "early_stopping_min_delta": 0.1},
        {"on_nonfinite": "skip", "nonfinite_limit": 3},
        {"max_to_keep": 9},
        {"retention": "Latest(2)"},
    ],
)
def test_keys_that_have_an_effect_are_not(keys: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    warn_without_effect(Config(**keys))
    assert not caplog.records
