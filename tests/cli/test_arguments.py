"""A command line becomes a project and configuration keys."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mltrain.cli import app
from mltrain.cli.arguments import parse
from mltrain.configuration.fields import NOT_GIVEN
from mltrain.errors import UsageError
from mltrain.project import find, find_pipeline

keys = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z]{1,4})?", fullmatch=True)
values = st.text(min_size=1, max_size=12).filter(lambda text: text not in NOT_GIVEN and not text.startswith("--"))


@given(st.dictionaries(keys, values, max_size=5), st.data())
def test_a_key_and_its_value_may_be_written_in_three_ways(given_: dict[str, str], data: st.DataObject) -> None:
    words: list[str] = ["my_project"]
    for key, value in given_.items():
        way = data.draw(st.sampled_from(["plain", "joined", "apart", "dashes"]))
        option = f"--{key.replace('_', '-') if way == 'dashes' else key}"
        words += {"plain": [f"{key}={value}"], "apart": [option, value]}.get(way, [f"{option}={value}"])
    assert parse(words) == ("my_project", given_)


@pytest.mark.parametrize(
    ("words", "project", "overrides"),
    [
        ([], None, {}),
        (["segmentation"], "segmentation", {}),
        (["lr=1e-3", "my_project.py", "epochs=3"], "my_project.py", {"lr": "1e-3", "epochs": "3"}),
        (["--lr", "-1"], None, {"lr": "-1"}),
        (["lr=-1"], None, {"lr": "-1"}),
        (["-lr=3"], None, {"lr": "3"}),
        (["note=a=b=c"], None, {"note": "a=b=c"}),
        (["--note=--x"], None, {"note": "--x"}),
        (["network.width=3", "--network.depth", "4"], None, {"network.width": "3", "network.depth": "4"}),
        (["image_path=", "--config=''", 'preset=""', "lr=none", "--lr", "None", "epochs=~"], None, {}),
        (["patience=null"], None, {"patience": "null"}),
        (["lr=1", "lr=2"], None, {"lr": "2"}),
        (["note=two words", "other=x;y|z$(id)`id`"], None, {"note": "two words", "other": "x;y|z$(id)`id`"}),
    ],
)
def test_words_mean_a_project_and_keys(words: list[str], project: str | None, overrides: dict[str, str]) -> None:
    assert parse(words) == (project, overrides)


def test_a_file_with_an_equals_sign_in_its_name_is_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3.py").write_text("")
    assert parse(["lr=3.py"]) == ("lr=3.py", {})
    assert parse(["lr=4.py"]) == (None, {"lr": "4.py"})


@pytest.mark.parametrize(
    "value", ["[" + ", ".join(f"class_{n:03}" for n in range(60)) + "]", "a/" * 5000, "two\nlines\0"]
)
def test_a_value_that_no_file_name_can_hold_is_a_value(value: str) -> None:
    assert parse([f"names={value}", f"--others={value}", "more", f"rest={value}"]) == (
        "more",
        dict.fromkeys(("names", "others", "rest"), value),
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["one", "two"], "'two' is a second project after 'one'"),
        (["--lr"], "--lr has no value. Expected --lr VALUE or lr=VALUE"),
        (["one", "--amp", "--lr", "3"], "--amp has no value"),
    ],
)
def test_invalid_arguments_are_refused(words: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse(words)


def test_nothing_given_is_changed_by_reading_it() -> None:
    words = ["one", "--lr", "3"]
    parse(words)
    assert words == ["one", "--lr", "3"]


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, ["train", *words], env={"COLUMNS": "120", "TERMINAL_WIDTH": "120"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("words", [("tool_wear", "--help"), ("--preset", "quick", "tool_wear", "lr=1e-3", "--help")])
def test_the_help_of_a_project_lists_its_keys_with_type_default_and_description(words: tuple[str, ...]) -> None:
    said, config = shown(*words), find("tool_wear").config
    assert "Keys of tool_wear" in said
    assert said.index("Keys of tool_wear") < said.index("lr: float = ") < said.index("Keys of every training")
    for name, field in config.model_fields.items():
        assert f"{name}: " in said
        assert (field.description or "-").split()[0] in said
    assert "device: str = 'auto'" in said


def test_the_list_of_commands_cuts_no_description_at_80_columns() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert "reap" in done.output
    assert [row for row in done.output.partition("Commands:")[2].splitlines() if row.endswith("...")] == []


def test_the_help_without_a_project_says_how_to_list_keys_and_names_an_unknown_project() -> None:
    assert "mltrain train PROJECT --help" in shown("--help")
    assert "tool_wear" in shown("tool_waer", "--help")


def test_every_key_has_a_description() -> None:
    configs = {name: find(name).config for name in ("segmentation", "tool_wear", "style_transfer")}
    configs |= {stage.name: stage.config for stage in find_pipeline("cardiac").pipeline.stages}
    lacking = [
        f"{name}.{key}"
        for name, one in configs.items()
        for key, field in one.model_fields.items()
        if not field.description
    ]
    assert lacking == []
