"""Words of other programs for keys of the configuration."""

from pathlib import Path
from typing import Any

import pytest

from mltrain.config import Config
from mltrain.configuration import aliases
from mltrain.errors import ConfigError
from tests.support.configurations import Example, Network, written


def test_words_of_other_programs_are_read_as_ours_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "_named", set())
    file = written(tmp_path, '{"training": {"num_epochs": 7, "learning_rate": "3e-4", "batch_size": 4}, "seed": 3}')
    for _ in range(2):
        config = Example.load([file], overrides={"checkpoint_mode": "epochs"})
    assert (config.epochs, config.lr, config.batch_size, config.seed) == (7, 3e-4, 4, 3)
    assert config.checkpoint_mode == "every"
    assert [record.getMessage() for record in caplog.records] == [
        "num_epochs is an alias. Expected epochs.",
        "learning_rate is an alias. Expected lr.",
        "checkpoint_mode=epochs is an alias. Expected checkpoint_mode=every.",
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"num_epochs": "3", "epochs": "4"},
        {"training.num_epochs": "3", "training.epochs": "4"},
        {"training": {"epochs": 3}, "epochs": 4},
    ],
)
def test_two_words_for_one_key_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"epochs \(from the command line\) is given twice, as '.*' and as '.*'"):
        Example.load(overrides=given)


def test_a_field_of_the_project_comes_before_an_alias_and_a_section() -> None:
    class Own(Config):
        num_epochs: int = 1
        training: Network = Network()
        resume_checkpoint: str = ""

    config = Own.load(overrides={"num_epochs": "5", "training.width": "3", "resume_checkpoint": "x"})
    assert (config.num_epochs, config.epochs, config.training.width, config.resume_checkpoint) == (5, 10, 3, "x")


def test_an_alias_of_a_key_that_the_project_lacks_is_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match="Unknown key 'learning_rate'"):
        Config.load(overrides={"learning_rate": "1"})
