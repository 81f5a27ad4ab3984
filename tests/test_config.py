"""Typed configuration: files, presets, overrides, in this order."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mltrain import config
from mltrain.config import Config
from mltrain.configuration import aliases
from mltrain.configuration.fields import NOT_GIVEN, RESERVED
from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError, nearest


class Network(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 8
    activation: Literal["relu", "gelu"] = "relu"
    rates: list[float] = [0.1]


class Example(Config):
    lr: float = Field(1e-3, gt=0, description="The learning rate.")
    batch_size: int = 16
    title: str = "plain"
    note: str | None = None
    network: Network = Network()
    weights: dict[str, float] = Field(default_factory=dict)
    sizes: list[int] = Field(default=[1, 2])
    image_path: Path | None = None
    augment: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 1, "weights": {"a": 1.0}},
        "wide": {"network": {"width": 64}},
    }


class Needing(Config):
    data: Path
    classes: int


def yaml_file(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_later_is_laid_over_the_earlier(tmp_path: Path) -> None:
    first = yaml_file(tmp_path, "lr: 0.1\nbatch_size: 2\nepochs: 3\ntitle: first", "1.yaml")
    second = yaml_file(tmp_path, "batch_size: 4\npresets:\n  quick: {epochs: 5, title: preset}", "2.yaml")
    config = Example.load([first, second], preset="quick", overrides={"title": "override"}, base={"lr": 0.5, "seed": 7})
    assert (config.seed, config.lr, config.batch_size, config.epochs, config.title) == (7, 0.1, 4, 5, "override")


def test_the_values_of_a_file_are_of_the_types_of_their_fields(tmp_path: Path) -> None:
    text = "lr: 1e-3\ntitle: no\nnote: 1.0\naugment: no\nnetwork: {width: 010, rates: [1e-2, 3]}\nweights: {yes: 1}"
    config = Example.load([yaml_file(tmp_path, text)])
    assert (config.lr, config.title, config.note, config.augment) == (1e-3, "no", "1.0", False)
    assert (config.network.width, config.network.rates, config.weights) == (10, [0.01, 3.0], {"yes": 1.0})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lr", "3e-4", 3e-4),
        ("epochs", "12", 12),
        ("title", "no", "no"),
        ("title", "1e-3", "1e-3"),
        ("title", "null", "plain"),
        ("title", "", ""),
        ("note", "none", None),
        ("note", "null", None),
        ("note", "''", None),
        ("note", "none of these", "none of these"),
        ("augment", "no", False),
        ("augment", "true", True),
        ("sizes", "[3, 4]", [3, 4]),
        ("weights", "{a: 0.5}", {"a": 0.5}),
        ("amp", "bf16", "bf16"),
        ("save_every_minutes", "2.5", 2.5),
        ("lr", "", 1e-3),
        ("early_stopping_patience", "none", None),
    ],
)
def test_a_text_on_the_command_line_is_read_by_the_type_of_its_field(key: str, text: str, value: Any) -> None:
    assert getattr(Example.load(overrides={key: text}), key) == value


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
    assert Example.load(overrides={"image_path": "~/images"}).image_path == Path.home() / "images"
    assert Example.load(overrides={"image_path": "none"}).places() == {}


WRONG_KEYS = {
    "weight_decay": "Unknown key 'weight_decay'",
    "batchsize": "Did you mean 'batch_size'",
    "network.widht": "Unknown key 'network.widht'",
    "lr.value": "'lr' has no keys of its own",
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


def test_a_problem_of_several_keys_is_told_without_all_values() -> None:
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


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Example.load(overrides={"lr": "a", "epochs": "b"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("given", ["", "none", "''"])
def test_a_field_without_a_default_has_to_be_given(given: str) -> None:
    with pytest.raises(ConfigError, match="data has no default and was not given"):
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


def test_changes_are_told_by_their_dotted_keys() -> None:
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


def test_no_field_has_a_name_that_is_reserved() -> None:
    assert not RESERVED & Config.model_fields.keys()


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Example().lr = 3.0  # type: ignore[misc]


HOSTILE_YAML = {
    "an alias": "a: &x [1]\nb: *x",
    "a bomb of aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a merge key with an alias": "base: &base {lr: 1}\nother:\n  <<: *base",
    "a Python object": "lr: !!python/object/apply:os.system ['true']",
    "a Python name": "lr: !!python/name:os.system",
    "a Python module": "lr: !!python/module:os",
    "a Python tuple": "lr: !!python/tuple [1, 2]",
    "an unknown tag": "lr: !lr 1",
    "a key twice": "lr: 1\nlr: 2",
    "a key twice in what is nested": "network:\n  width: 1\n  width: 2",
    "a key twice in a preset": "presets:\n  quick: {epochs: 1}\n  quick: {epochs: 2}",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is a mapping": "? {a: b}\n: 1",
    "two documents": "lr: 1\n---\nlr: 2",
    "a list": "- lr",
    "a text": "lr",
    "no end": "lr: [1, 2",
    "a tab": "network:\n\twidth: 1",
    "NUL": "lr: 1\0",
    "deep lists": "lr: " + "[" * 3000 + "]" * 3000,
    "deep mappings": "lr: " + "{a: " * 3000 + "}" * 3000,
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_a_hostile_file_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml (is not a valid YAML file|holds a)") as caught:
        read_mapping(yaml_file(tmp_path, HOSTILE_YAML[what]))
    assert "alias" not in what or "aliases (*name) are not read" in str(caught.value)
    assert "twice" not in what or "stands twice" in str(caught.value)


HOSTILE_JSON = {
    "a key twice": '{"lr": 1, "lr": 2}',
    "a key twice in what is nested": '{"network": {"width": 1, "width": 2}}',
    "not an object": "[1]",
    "cut": '{"lr": 1',
    "deep": "[" * 100_000,
    "a number of too many digits": '{"seed": ' + "1" * 5000 + "}",
    "a comment": '{"lr": 1} // fast',
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_a_hostile_json_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Example.load([yaml_file(tmp_path, text, "config.json")])


@pytest.mark.parametrize("value", ["[" * 5000, "{" * 5000, "[*x]", "[!!python/name:os.system ]", "{a: 1, a: 2}", "[1"])
def test_a_hostile_value_on_the_command_line_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        Example.load(overrides={"weights": value})


def test_nothing_in_a_file_is_more_than_text(tmp_path: Path) -> None:
    text = "a: 1\nb: true\nc: 2026-01-01\nd: ~\ne: 0x10\nf: .inf\ng: 'x'\n<<: y\nh: 1:30\ni:\nj: =\n"
    assert read_mapping(yaml_file(tmp_path, text)) == {
        **{"a": "1", "b": "true", "c": "2026-01-01", "d": "~", "e": "0x10", "f": ".inf", "g": "x"},
        **{"<<": "y", "h": "1:30", "i": "", "j": "="},
    }


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    values = {"lr": 0.5, "sizes": [1, 2], "network": {"width": 3}, "note": None, "augment": False}
    json_file = yaml_file(tmp_path, json.dumps(values), "a.json")
    yaml = yaml_file(tmp_path, "lr: 0.5\nsizes: [1, 2]\nnetwork: {width: 3}\nnote: null\naugment: false", "a.yaml")
    assert Example.load([json_file]) == Example.load([yaml])


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert Example.load([yaml_file(tmp_path, "# nothing\n")]) == Example()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_error_of_the_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Example.load([Path(name)])


def test_a_home_that_nobody_has_is_an_error_of_the_key() -> None:
    with pytest.raises(ConfigError, match="image_path"):
        Example.load(overrides={"image_path": "~nobody-of-this-name/images"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read: No such file"):
        Example.load([tmp_path / "missing.yaml"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Example.load([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"lr: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Example.load([tmp_path / "binary.yaml"])
    (tmp_path / "large.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="no configuration is that large"):
        Example.load([tmp_path / "large.yaml"])


def test_none_is_a_choice_where_a_field_lists_it() -> None:
    class Choice(Config):
        flips: Literal["none", "both"] = "both"
        resize: Literal["stretch", "none"] | None = "stretch"

    chosen = Choice.load(overrides={"flips": "none", "resize": "none"})
    assert (chosen.flips, chosen.resize) == ("none", "none")
    assert Choice.load(overrides={"flips": "", "resize": "null"}) == Choice(resize=None)


@pytest.mark.parametrize("word", sorted(NOT_GIVEN))
def test_every_word_for_not_given_leaves_an_optional_field_empty(word: str) -> None:
    assert Example.load(overrides={"experiment": word}).experiment is None


def test_a_word_unlike_all_has_no_nearest() -> None:
    assert nearest("zzzzzz", ["lr", "epochs"]) == ""
    assert nearest("epoch", ["lr", "epochs"]) == " Did you mean 'epochs'?"


def written(folder: Path, text: str) -> Path:
    file = folder / "config.json"
    file.write_text(text)
    return file


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
        "num_epochs is called epochs here.",
        "learning_rate is called lr here.",
        "checkpoint_mode=epochs is called checkpoint_mode=every here.",
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


def test_what_a_file_resumes_from_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    file = written(tmp_path, '{"training": {"resume_checkpoint": "checkpoints/epoch_0050.pt", "epochs": 3}}')
    assert Example.load([file]) == Example(epochs=3)
