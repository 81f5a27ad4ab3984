"""Tables are complete in files and harmless in terminals."""

import re

import pytest

from mltrain.cli.tables import shortest, table, table_that_fits


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


def test_columns_that_a_terminal_is_too_narrow_for_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    row = ["12345678", "0.123456", "0.234567", "0.345678"]
    table_that_fits("Last", ["run", "loss", "accuracy", "f1"], [row], "Try: --json")
    assert "0.345678" in capsys.readouterr().out, "a file has all of them"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table_that_fits("Last", ["run", "loss", "accuracy", "f1"], [row], "Try: --json")
    printed = capsys.readouterr().out
    assert "0.234567" in printed
    assert "0.345678" not in printed
    assert "Too wide for this terminal: f1. Try: --json" in printed


def test_a_table_that_fits_is_printed_with_one_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table("Runs", ("name", "state"), [("脂肪", "finished"), ("a", "dead")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].index("finished") + 2 == lines[3].index("dead"), "a wide character takes two columns"


@pytest.mark.parametrize("columns", [24, 40, 80])
def test_a_narrow_terminal_folds_cells_and_cuts_none(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    head, rows = ("", "first run", "second run"), [(f"key_{n}", "x" * 60 + str(n), "z" * 30) for n in range(3)]
    table("Parameters", head, rows)
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    text = "".join(lines)
    assert (text.count("x"), text.count("z")) == (180, 90)
    assert all(any(line.startswith(f"key_{n}") for line in lines) for n in range(3)), "names of rows are whole"


def test_ids_are_cut_to_what_tells_them_apart() -> None:
    assert shortest(["0123456789", "abcdefghij"]) == ["01234567", "abcdefgh"]
    assert shortest(["01234567a9", "01234567b9", "01234567b9"]) == ["01234567a", "01234567b", "01234567b"]
    assert shortest([]) == []
