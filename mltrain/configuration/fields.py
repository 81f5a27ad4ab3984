"""Nests dotted keys, and parses text by field type."""

import copy
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mltrain.configuration.files import known_names, plain_yaml
from mltrain.errors import ConfigError, nearest

NOT_GIVEN = frozenset({"", "''", '""', "none", "None", "null", "~"})
"""Values that mean "not given", which covers every empty parameter of an MLproject."""


RESERVED = frozenset(
    {
        "project",
        "resume",
        "resume_run",
        "resume_from",
        "fork_run",
        "run_key",
        "processes",
        "preset",
        "config",
        "presets",
    }
)
"""Keys of the command line or the file, which cannot be fields of a configuration."""

_REMEDIES = {
    "processes": " To start several processes, try: mltrain train PROJECT --processes N, or torchrun.",
}
"""Advice on keys that users try but no configuration has."""


_MOST_LISTED = 8
LISTED_WHERE = "All keys are listed by: mltrain train PROJECT --help."
"""Ends an error about an unknown key if there are too many keys to list."""


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Merge a nested mapping into another, overriding old values."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a nested configuration's values with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_text(value: Any) -> str:
    """Return a value as MLflow text: unchanged, ``none``, or JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def typed_entry(model: type[BaseModel], path: list[str], key: str, value: Any, source: str) -> dict[str, Any]:
    """Return a dotted key's value, nested and parsed by type."""
    name, rest = path[0], path[1:]
    field = model.model_fields.get(name)
    if field is None:
        known = [known for known in model.model_fields if known not in RESERVED]
        hint = _REMEDIES.get(name) or (" It belongs on the command line." if name in RESERVED else nearest(name, known))
        listed = known_names("keys", known) if len(known) <= _MOST_LISTED else LISTED_WHERE
        raise ConfigError(f"Unknown key {key!r} (from {source}).{hint} {listed}")
    nested = model_in(field.annotation)
    if rest:
        if nested is None:
            raise ConfigError(f"Unknown key {key!r} (from {source}): {name!r} has no keys below it.")
        return {name: typed_entry(nested, rest, key, value, source)}
    if nested is not None and isinstance(value, Mapping):
        inner: dict[str, Any] = {}
        for sub, sub_value in value.items():
            merge(inner, typed_entry(nested, str(sub).split("."), f"{key}.{sub}", sub_value, source))
        return {name: inner}
    parsed = _parsed(field, value, key, source)
    # A key that is not given and has no default counts as absent.
    return {} if parsed is PydanticUndefined else {name: parsed}


def _parsed(field: FieldInfo, value: Any, key: str, source: str) -> Any:
    is_missing = isinstance(value, str) and value in NOT_GIVEN  # a path is given whatever its name
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        return value
    if is_place(field.annotation) and not is_missing:
        try:
            return str(Path(value).expanduser().absolute())  # a resume may start in another folder
        except RuntimeError as error:
            raise ConfigError(f"{key} (from {source}): {value!r:.80} is not a valid path: {error}") from None
    if is_missing and not _is_choice(field.annotation, value):
        if allows(field.annotation, type(None)):
            return None
        if allows(field.annotation, str) and value in ("", "''", '""'):
            return ""
        return field.get_default(call_default_factory=True)
    if not allows(field.annotation, str) and value[:1] in "[{" and _allows_collection(field.annotation):
        try:
            return plain_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{key} (from {source}): {value!r:.80} is not a list or mapping: {error}") from None
    return value


def _members(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member)
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    else:
        yield annotation


def allows(annotation: Any, wanted: type) -> bool:
    """Whether an annotation accepts values of a type."""
    return wanted in _members(annotation)


def _is_choice(annotation: Any, value: str) -> bool:
    """Whether a ``Literal`` of the annotation contains the text."""
    return any(
        typing.get_origin(member) is typing.Literal and value in typing.get_args(member)
        for member in _members(annotation)
    )


def _allows_collection(annotation: Any) -> bool:
    return any(
        (typing.get_origin(member) or member) in (list, tuple, dict, set, frozenset) for member in _members(annotation)
    )


def is_place(annotation: Any) -> bool:
    """Whether a field names a file or folder."""
    return allows(annotation, Path)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the nested model of an annotation, or ``None``."""
    return next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def explained(model: type[BaseModel], error: ValidationError) -> str:
    """Return one line for each invalid value of a configuration."""
    lines = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        field = model.model_fields.get(str(detail["loc"][0])) if detail["loc"] else None
        if detail["type"] == "extra_forbidden":
            lines.append(f"Unknown key {key!r}.{nearest(key, model.model_fields)}")
            continue
        if detail["type"] == "missing":
            lines.append(f"{key} is missing and has no default.")
            continue
        problem = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            lines.append(f"{problem}.")
            continue
        meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        lines.append(f"{key}={detail['input']!r} is not accepted: {problem[:1].lower()}{problem[1:]}{meaning}.")
    return "\n".join(lines)
