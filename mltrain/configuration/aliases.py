"""Translates other programs' keys, values and sections, with a warning."""

import logging
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from mltrain.errors import ConfigError

log = logging.getLogger(__name__)

Fields = Mapping[str, FieldInfo]

KEYS = {"num_epochs": "epochs", "learning_rate": "lr"}
"""Foreign keys and their names in mltrain."""

VALUES = {("checkpoint_mode", "epochs"): "every"}
"""Foreign values of a key and their names in mltrain."""

SECTIONS = ("training",)
"""Sections whose keys count as keys of the top level."""

RESUME_KEY = "resume_checkpoint"
"""A key that means ``--resume``; it belongs to the request, not to the configuration."""

_named: set[str] = set()


def own_key(key: str, fields: Fields) -> str:
    """Translate a dotted key; warn about each alias once."""
    name, dot, rest = key.partition(".")
    if name in fields:
        return key
    if name in SECTIONS and dot:
        return own_key(rest, fields)
    own = KEYS.get(name)
    if own is None or own not in fields:
        return key
    _warn_once(name, own)
    return own + dot + rest


def own_words(given: Mapping[str, Any], fields: Fields, source: str) -> dict[str, Any]:
    """Translate keys and values; warn about each alias once.

    Args:
        given: dotted or plain keys; a section such as ``training`` is dissolved, unless it is a field.
        fields: fields of the configuration.
        source: of the keys, for the message.

    Raises:
        ConfigError: two keys mean the same.
    """
    own: dict[str, Any] = {}
    meant: dict[str, str] = {}
    for spelt, value in _flattened(given, fields):
        key = own_key(spelt, fields)
        if key in own:
            raise ConfigError(
                f"{key} (from {source}) is given twice, as {meant[key]!r} and as {spelt!r}. Expected one."
            )
        meant[key] = spelt
        own[key] = _own_value(key, value, fields)
    return own


def _flattened(given: Mapping[str, Any], fields: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if str(key) in SECTIONS and key not in fields and isinstance(value, Mapping):
            yield from _flattened(value, fields, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _own_value(key: str, value: Any, fields: Fields) -> Any:
    field = fields.get(key)
    own = VALUES.get((key, value)) if isinstance(value, str) else None
    if own is None or field is None or value in typing.get_args(field.annotation):
        return value
    _warn_once(f"{key}={value}", f"{key}={own}")
    return own


def _warn_once(word: str, own: str) -> None:
    if word not in _named:
        _named.add(word)
        log.warning("%s is an alias. Expected %s.", word, own)
