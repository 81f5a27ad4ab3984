"""Files of a configuration: what they may hold, and what of them is refused."""

import json
from pathlib import Path

import pytest

from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError
from tests.support.configurations import Example, yaml_file


def test_the_values_of_a_file_are_of_the_types_of_their_fields(tmp_path: Path) -> None:
    text = "lr: 1e-3\ntitle: no\nnote: 1.0\naugment: no\nnetwork: {width: 010, rates: [1e-2, 3]}\nweights: {yes: 1}"
    config = Example.load([yaml_file(tmp_path, text)])
    assert (config.lr, config.title, config.note, config.augment) == (1e-3, "no", "1.0", False)
    assert (config.network.width, config.network.rates, config.weights) == (10, [0.01, 3.0], {"yes": 1.0})


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
    assert "alias" not in what or "aliases (*name) are not supported" in str(caught.value)
    assert "twice" not in what or "occurs twice" in str(caught.value)


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


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read: No such file"):
        Example.load([tmp_path / "missing.yaml"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Example.load([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"lr: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Example.load([tmp_path / "binary.yaml"])
    (tmp_path / "large.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="too large for a configuration"):
        Example.load([tmp_path / "large.yaml"])


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_a_byte_order_mark_is_no_part_of_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text('{"lr": 1}', encoding="utf-8-sig")
    assert list(read_mapping(file)) == ["lr"]
