"""Notes of a run: how to resume it, and what changed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.ownership.attempts import Attempt
from mltrain.run.description import note


def attempt(ordinal: int, **more: Any) -> Attempt:
    return Attempt(ordinal, host="", boot="", pid=0, started="", **more)


def test_a_note_says_how_to_resume_and_what_changed() -> None:
    attempts = [attempt(1), attempt(2, resumed_from="step-000000420-a01", changed={"lr": ("0.1", "0.01")})]
    text = note("tiny.py", "f" * 32, "val/loss 0.25 at epoch 3", attempts, " --to evaluation")
    assert f"mltrain train --resume-run {'f' * 32}" in text
    assert "Best so far: val/loss 0.25 at epoch 3." in text
    assert "* Attempt 2 continued from step-000000420-a01 with lr 0.1 → 0.01." in text
    assert "Attempt 1" not in text


@pytest.mark.parametrize("options", [None, "", " --to evaluation"])
def test_a_note_names_an_evaluation_only_if_the_task_has_one(options: str | None) -> None:
    lines = note("tiny.py", "f" * 32, None, [], options).splitlines()
    named = [f"mltrain evaluate {'f' * 32}{options}"] if options is not None else []
    assert [line for line in lines if "evaluate" in line] == named


@settings(max_examples=100)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.tuples(st.text(), st.text()), max_size=2))
def test_nothing_in_a_note_is_markup_or_a_command(
    project: str, origin: str, changed: dict[str, tuple[str, str]]
) -> None:
    text = note(project, "f" * 32, origin, [attempt(2, resumed_from=origin, changed=changed)], None)
    plain = note("", "f" * 32, None, [], None)
    added = text.replace("* Attempt", "")
    for character in "<>[]*\x1b\x9b\x00\x07\r":
        assert added.count(character) == plain.count(character)
    assert added.count("`") == plain.count("`")


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "[click](javascript:alert(1))", "![x](http://x)", "\x1b]0;title\x07", "```\nx\n```"],
)
def test_markup_and_escape_sequences_are_taken_out_of_names(hostile: str) -> None:
    attempts = [attempt(2, resumed_from=hostile, changed={hostile: (hostile, hostile)})]
    text = note(hostile, "f" * 32, hostile, attempts, None)
    assert not any(sequence in text for sequence in ("<script", "](", "\x1b", "\x07", "```\nx"))
