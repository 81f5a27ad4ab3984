"""Reads YAML and JSON configuration files strictly."""

import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mltrain.errors import ConfigError

_MAX_FILE_BYTES = 1_000_000


def read_mapping(file: Path) -> dict[str, Any]:
    """Read a YAML or JSON file; YAML scalars remain text.

    Raises:
        ConfigError: the file is missing, too large or malformed, is not a mapping, or has duplicate keys, aliases or Python
            tags.
    """
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{file} is too large for a configuration. Expected at most {_MAX_FILE_BYTES} bytes.")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration {file} is not UTF-8 text.") from None
    except ValueError as error:  # the file name contains NUL
        raise ConfigError(f"The configuration {file} cannot be read: {error}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_unique) if file.suffix == ".json" else plain_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a valid {file.suffix.lstrip('.').upper() or 'YAML'} file: {error}") from None
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__} at its top level. Expected a mapping of keys.")
    return content


class PlainLoader(yaml.SafeLoader):
    """Loads YAML scalars as text; refuses aliases, tags and duplicates."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; repeat the value instead")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys."""
        return _unique(
            [(self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value]
        )


PlainLoader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(typing.cast(yaml.MappingNode, node))
)


def plain_yaml(text: str) -> Any:
    """Parse YAML, with all scalars as text."""
    return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - a SafeLoader, made stricter above


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"the key {key!r} is not text")
        if key in mapping:
            raise ValueError(f"the key {key!r} occurs twice")
        mapping[key] = value
    return mapping


def presets_of(content: Any, file: Path) -> dict[str, Mapping[str, Any]]:
    """Return the presets of a file."""
    if isinstance(content, dict) and all(isinstance(overlay, dict) or overlay == "" for overlay in content.values()):
        return {name: overlay or {} for name, overlay in content.items()}
    raise ConfigError(f"{file}: 'presets' is invalid. Expected a mapping of names to mappings of keys.")


def known_names(what: str, names: Iterable[str]) -> str:
    """Return a sentence that lists the known names."""
    listed = ", ".join(sorted(names))
    return f"Known {what}: {listed}." if listed else f"There are no {what}."
