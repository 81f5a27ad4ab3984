"""Tables for people are complete in a file and do nothing to a terminal."""

import pytest

from mltrain.cli.tables import table


def test_a_table_in_a_file_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table("Runs", ("run id", "why"), [("a" * 32, "b" * 200)])
    printed = capsys.readouterr().out
    assert "Runs (1)" in printed
    assert "run id" in printed
    assert "a" * 32 in printed
    assert "b" * 200 in printed


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table("Runs", ("name",), [("\x1b]0;title\x07 [bold]x[/bold]",)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[bold]x[/bold]" in printed


def test_a_column_is_called_what_a_person_called_it(capsys: pytest.CaptureFixture[str]) -> None:
    table("Runs", ("my_run [/] lr=1", "val/my_loss\x07"), [("a", "b")])
    printed = capsys.readouterr().out
    assert "my_run [/] lr=1" in printed
    assert "val/my_loss" in printed
    assert "\x07" not in printed


def test_no_rows_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table("Runs", ("name",), [])
    assert capsys.readouterr().out == "Runs: none.\n"
