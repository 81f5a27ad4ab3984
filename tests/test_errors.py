"""Errors have promised exit codes and built-in base classes."""

import pytest

from mltrain import errors


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        (errors.MltrainError, 1, Exception),
        (errors.UsageError, 2, ValueError),
        (errors.ConfigError, 2, ValueError),
        (errors.DataError, 2, ValueError),
        (errors.RunNotFound, 2, LookupError),
        (errors.UnsupportedValue, 2, TypeError),
        (errors.NoCheckpoint, 3, LookupError),
        (errors.DamagedCheckpoint, 3, ValueError),
        (errors.RunHeld, 4, Exception),
        (errors.StorageError, 5, OSError),
        (errors.TrackingError, 6, ConnectionError),
        (errors.NonFiniteLoss, 7, ArithmeticError),
        (errors.StateMismatch, 8, ValueError),
    ],
)
def test_an_error_has_its_exit_code(kind: type[errors.MltrainError], code: int, builtin: type[Exception]) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, errors.MltrainError)
    assert issubclass(kind, builtin)


def test_the_nearest_name_is_suggested_and_a_strange_one_is_not() -> None:
    assert "'epochs'" in errors.nearest("epoch", ["epochs", "lr"])
    assert errors.nearest("zzzz", ["epochs", "lr"]) == ""


def test_a_count_has_its_noun_in_the_plural_unless_it_is_one() -> None:
    assert [errors.counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


@pytest.mark.parametrize(
    ("text", "ended"), [("Run not found", "Run not found."), ("Not found.", "Not found."), ("Found?", "Found?")]
)
def test_another_sentence_can_follow_a_text(text: str, ended: str) -> None:
    assert errors.sentence(text) == ended
