"""``mltrain train PROJECT --help``: the keys of the project."""

import pytest
from typer.testing import CliRunner

from mltrain.cli import app
from mltrain.project import find, find_pipeline


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
