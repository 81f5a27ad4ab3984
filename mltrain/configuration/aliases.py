"""Words of other programs for keys, values and sections: read as ours, and each named once with our spelling."""

import logging
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from mltrain.errors import ConfigError

log = logging.getLogger(__name__)

Fields = Mapping[str, FieldInfo]

KEYS = {"num_epochs": "epochs", "learning_rate": "lr"}
"""Keys and what they are called here."""

VALUES = {("checkpoint_mode", "epochs"): "every"}
"""Values of a key and what they are called here."""

SECTIONS = ("training",)
"""Mappings whose keys may as well stand at the top level."""

RESUME_KEY = "resume_checkpoint"
"""The key of a file or a command line that means ``--resume``; it is part of a request and not of a configuration."""

_named: set[str] = set()


def own_key(key: str, fields: Fields) -> str:
    """Return a dotted key as it is spelt here, and log an alias as a warning, once."""
    name, dot, rest = key.partition(".")
    if name in fields:
        return key
    if name in SECTIONS and dot:
        return own_key(rest, fields)
    own = KEYS.get(name)
    if own is None or own not in fields:
        return key
    _tell(name, own)
    return own + dot + rest


def own_words(given: Mapping[str, Any], fields: Fields, source: str) -> dict[str, Any]:
    """Return keys and values as they are spelt here; log each alias as a warning, once.

    Args:
        given: dotted or plain keys; a section such as ``training`` is dissolved, unless it is a field.
        fields: of the configuration.
        source: of the keys, for the message.

    Raises:
        ConfigError: two keys mean the same.
    """
    own: dict[str, Any] = {}
    meant: dict[str, str] = {}
    for spelt, value in _dissolved(given, fields):
        key = own_key(spelt, fields)
        if key in own:
            raise ConfigError(
                f"{key} (from {source}) is given twice, as {meant[key]!r} and as {spelt!r}. Expected one."
            )
        meant[key] = spelt
        own[key] = _own_value(key, value, fields)
    return own


def _dissolved(given: Mapping[str, Any], fields: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if str(key) in SECTIONS and key not in fields and isinstance(value, Mapping):
            yield from _dissolved(value, fields, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _own_value(key: str, value: Any, fields: Fields) -> Any:
    field = fields.get(key)
    own = VALUES.get((key, value)) if isinstance(value, str) else None
    if own is None or field is None or value in typing.get_args(field.annotation):
        return value
    _tell(f"{key}={value}", f"{key}={own}")
    return own


def _tell(word: str, own: str) -> None:
    if word not in _named:
        _named.add(word)
        log.warning("%s is called %s here.", word, own)
