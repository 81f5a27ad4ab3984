"""Typed configuration: files, presets, overrides, in this order."""

import copy
import json
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError, model_validator

from mltrain import config
from mltrain.config import Config
from mltrain.errors import ConfigError, nearest
from tests.support.configurations import Example, Network, written, yaml_file


class Needing(Config):
    data: Path
    classes: int


def test_the_later_is_laid_over_the_earlier(tmp_path: Path) -> None:
    first = yaml_file(tmp_path, "lr: 0.1\nbatch_size: 2\nepochs: 3\ntitle: first", "1.yaml")
    second = yaml_file(tmp_path, "batch_size: 4\npresets:\n  quick: {epochs: 5, title: preset}", "2.yaml")
    config = Example.load([first, second], preset="quick", overrides={"title": "override"}, base={"lr": 0.5, "seed": 7})
    assert (config.seed, config.lr, config.batch_size, config.epochs, config.title) == (7, 0.1, 4, 5, "override")


def test_dotted_keys_reach_into_what_is_nested() -> None:
    config = Example.load(overrides={"network.width": "3", "network.activation": "gelu", "network": {"rates": "[1]"}})
    assert config.network == Network(width=3, activation="gelu", rates=[1.0])


def test_a_place_is_remembered_from_the_root_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Example.load(overrides={"image_path": "images/train"})
    assert config.image_path == tmp_path / "images" / "train"
    assert config.places() == {"image_path": tmp_path / "images" / "train"}
    for place in ("~/images", Path("~/images")):
        assert Example.load(overrides={"image_path": place}).image_path == Path.home() / "images"
    for name in ("images", "none", "null"):  # a Path is given whatever its name
        assert Example.load(overrides={"image_path": Path(name)}).image_path == Path.cwd() / name
    assert Example.load(overrides={"image_path": "none"}).places() == {}


WRONG_KEYS = {
    "weight_decay": "Unknown key 'weight_decay'",
    "batchsize": "Did you mean 'batch_size'",
    "network.widht": "Unknown key 'network.widht'",
    "lr.value": "'lr' has no keys below it",
    "resume_run": "belongs on the command line",
    "__class__": "Unknown key",
    "model_config": "Unknown key",
    "presets": "Unknown key",
    "": "Unknown key ''",
    ".": "Unknown key '.'",
}


@pytest.mark.parametrize("key", WRONG_KEYS)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example.load(overrides={key: "1"})
    assert WRONG_KEYS[key] in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "fast"),
        ("lr", "-1"),
        ("lr", "nan"),
        ("epochs", "1.5"),
        ("epochs", "-1"),
        ("seed", str(2**32)),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("device", "cuda\n"),
        ("amp", "fp8"),
        ("augment", "perhaps"),
        ("sizes", "[1, two]"),
        ("sizes", "1"),
        ("network", "wide"),
        ("network", {"width": "wide"}),
        ("best_metric", ["val/loss"]),
        ("weights", "{a: {b: 1}}"),
        ("max_to_keep", "0"),
        ("experiment", "e" * 501),  # no store of MLflow takes it
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        Example.load(overrides={key: value})


def test_the_message_says_what_the_field_is_for() -> None:
    with pytest.raises(
        ConfigError, match=r"lr='-1' is not accepted: input should be greater than 0 \(The learning rate\)"
    ):
        Example.load(overrides={"lr": "-1"})


def test_a_problem_of_several_keys_is_reported_without_all_values() -> None:
    class Pair(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError("low=Low lies above high")
            return self

    with pytest.raises(ConfigError) as caught:
        Pair.load(overrides={"low": "2"})
    assert str(caught.value) == "low=Low lies above high."


def test_one_error_names_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        Example.load(overrides={"lr": "a", "epochs": "b"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("given", ["", "none", "''"])
def test_a_field_without_a_default_has_to_be_given(given: str) -> None:
    with pytest.raises(ConfigError, match="data is missing and has no default"):
        Needing.load(overrides={"data": given, "classes": "2"})
    known = Needing.load(overrides={"data": "/x", "classes": "2"}).resolved()
    assert Needing.load(overrides={"data": given}, base=known).data == Path("/x")


def test_a_preset_of_the_class_and_one_of_a_file(tmp_path: Path) -> None:
    assert Example.load(preset="wide").network.width == 64
    file = yaml_file(tmp_path, "presets:\n  light: {epochs: 2}\n  empty:\n")
    assert Example.load([file], preset="light").epochs == 2
    assert Example.load([file], preset="empty").epochs == 10
    with pytest.raises(ConfigError, match=r"no preset 'lihgt'.*Did you mean 'light'"):
        Example.load([file], preset="lihgt")
    assert Example.overlay(file, "light") == {"epochs": "2"}
    with pytest.raises(ConfigError, match="has no preset 'quick'"):
        Example.overlay(file, "quick")


@pytest.mark.parametrize("text", ["presets: 3", "presets: [a]", "presets: {quick: 3}", "presets: {quick: [1]}"])
def test_presets_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="presets"):
        Example.load([yaml_file(tmp_path, text)])


def test_what_is_merged_stays_as_it_was(tmp_path: Path) -> None:
    base = Example().resolved()
    presets, before = copy.deepcopy(dict(Example.presets)), copy.deepcopy(base)
    overrides = {"network.width": "5", "weights": {"b": "2"}, "sizes": [9]}
    config = Example.load(preset="quick", overrides=overrides, base=base)
    assert config.weights == {"a": 1.0, "b": 2.0}
    assert base == before
    assert presets == Example.presets
    assert overrides == {"network.width": "5", "weights": {"b": "2"}, "sizes": [9]}
    assert Example.load(preset="quick", overrides=overrides) == config
    assert presets == Example.presets


def test_changes_are_named_by_their_dotted_keys() -> None:
    earlier = Example.load(overrides={"lr": "0.1", "note": "x"}).resolved()
    now = Example.load(overrides={"network.width": "9", "note": "none"}, base=earlier)
    assert now.changes_from(earlier) == {"network.width": ("8", "9"), "note": ("x", "none")}
    assert now.changes_from(now.resolved()) == {}
    del earlier["note"]
    assert now.changes_from({**earlier, "old": 1})["old"] == ("1", "(not set)")
    assert now.changes_from(earlier)["note"] == ("(not set)", "none")


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        dict,
        seed=st.integers(0, 2**32 - 1),
        lr=st.floats(min_value=1e-300, allow_infinity=False),
        title=st.text(),
        note=st.none() | st.text(),
        sizes=st.lists(st.integers()),
        weights=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_a_configuration_survives_json(values: dict[str, Any]) -> None:
    config = Example.model_validate(values)
    back = Example.load(base=json.loads(json.dumps(config.resolved())))
    assert back == config
    assert back.changes_from(config.resolved()) == {}


def test_every_parameter_is_one_text_under_its_dotted_key() -> None:
    flat = Example.load(overrides={"weights": {"a": 1}, "note": "x y"}).flattened()
    assert (flat["network.width"], flat["weights.a"], flat["note"], flat["augment"]) == ("8", "1.0", "x y", "true")
    assert (flat["image_path"], flat["sizes"]) == ("none", "[1, 2]")
    assert Example().flattened()["weights"] == "{}"
    assert all(isinstance(value, str) for value in flat.values())


def test_the_parameters_of_a_run_are_the_keys_that_mean_something_for_it() -> None:
    recorded = Example.load(overrides={"note": "x y", "run_name": "r", "experiment": "e"}).recorded()
    assert (recorded["note"], recorded["epochs"], recorded["seed"], recorded["max_to_keep"]) == ("x y", "10", "0", "5")
    assert not {"image_path", "run_name", "experiment", "amp", "save_every_steps", "nonfinite_limit"} & recorded.keys()
    assert not [key for key in recorded if key.startswith("early_stopping")]
    assert "none" not in recorded.values()
    own = [key.split(".")[0] not in Config.model_fields for key in recorded]
    assert own[0] and own == sorted(own, reverse=True), "the project's own keys come first"
    given = {
        "early_stopping_patience": 3,
        "amp": "bf16",
        "save_every_steps": 7,
        "on_nonfinite": "skip",
        "retention": "Best(1)",
    }
    more = Example.load(overrides=given).recorded()
    assert given.keys() < more.keys()
    assert (more["early_stopping_min_delta"], more["nonfinite_limit"]) == ("0.0", "20")
    assert "max_to_keep" not in more


def test_every_switch_of_the_recorded_parameters_is_a_field() -> None:
    named = {*config._SWITCHES, *config._PARTS, *(switch for switch, _ in config._PARTS.values())}
    assert named <= Config.model_fields.keys()
    assert all(Config.model_fields[name].default == off for name, off in config._SWITCHES.items())


def test_only_some_changes_affect_what_a_step_computes() -> None:
    affecting = {"lr", "network.width", "seed", "amp", "deterministic", "unknown"}
    assert all(Example.affects_training(key) for key in affecting)
    assert not any(Example.affects_training(key) for key in ("epochs", "device", "max_to_keep", "image_path"))
    assert Config.execution_fields <= Config.model_fields.keys()


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Example().lr = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_error_of_the_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Example.load([Path(name)])


def test_a_home_that_nobody_has_is_an_error_of_the_key() -> None:
    with pytest.raises(ConfigError, match="image_path"):
        Example.load(overrides={"image_path": "~nobody-of-this-name/images"})


def test_a_word_unlike_all_has_no_nearest() -> None:
    assert nearest("zzzzzz", ["lr", "epochs"]) == ""
    assert nearest("epoch", ["lr", "epochs"]) == " Did you mean 'epochs'?"


def test_what_a_file_resumes_from_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    file = written(tmp_path, '{"training": {"resume_checkpoint": "checkpoints/epoch_0050.pt", "epochs": 3}}')
    assert Example.load([file]) == Example(epochs=3)
