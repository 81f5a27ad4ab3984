"""Terminals get no control characters, and errors one line."""

import pytest

from mltrain.redaction import REDACTED, first_line, harmless


def test_harmless_keeps_lines_and_tabs() -> None:
    assert harmless("a\tb\nc\x1b[31m\x07") == "a\tb\nc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\x1b[1mbroken\x1b[0m\x07\nand more", "broken."),
        ("Is it there?", "Is it there?"),
        ("get https://a:b@host/x", f"get https://{REDACTED}@host/x."),
        ("", "ValueError."),
        ("12345678 " * 100, "12345678 " * 55 + "…"),
        ("x" * 600, "x" * 500 + " …"),
    ],
)
def test_a_first_line_is_one_harmless_sentence(text: str, expected: str) -> None:
    assert first_line(ValueError(text)) == expected
