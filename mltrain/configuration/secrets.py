"""Finds and masks secrets, and reads them from the environment."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from mltrain.configuration.fields import allows, model_in
from mltrain.redaction import DEFAULT, REDACTED, is_secret


def _holds_secret(name: str, field: FieldInfo, value: str) -> bool:
    return allows(field.annotation, SecretStr) or (allows(field.annotation, str) and is_secret(name, value))


def _revealed(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def secrets_of(config: BaseModel) -> Iterator[str]:
    """Yield the values of a configuration that are secrets."""
    for name, field in type(config).model_fields.items():
        value = _revealed(getattr(config, name))
        if isinstance(value, BaseModel):
            yield from secrets_of(value)
        elif isinstance(value, str) and _holds_secret(name, field, value):
            yield value


def masked_secrets(config: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration with its secrets masked."""
    masked = dict(values)
    for name, field in type(config).model_fields.items():
        value = _revealed(getattr(config, name))
        if isinstance(value, BaseModel) and isinstance(values.get(name), dict):
            masked[name] = masked_secrets(value, values[name])
        elif value and isinstance(value, str) and _holds_secret(name, field, value):
            masked[name] = DEFAULT if value == _revealed(field.get_default(call_default_factory=True)) else REDACTED
    return masked


def variable_of(key: str) -> str:
    """Return the environment variable of a secret key."""
    return f"MLTRAIN_{key.upper().replace('.', '__')}"


def secrets_of_environment(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the secrets that environment variables provide: ``api_key`` from ``MLTRAIN_API_KEY``."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = model_in(field.annotation)
        if nested is not None:
            inner = secrets_of_environment(nested, f"{prefix}{name}.")
            if inner:
                found[name] = inner
        elif (given := os.environ.get(variable_of(prefix + name))) and _holds_secret(name, field, given):
            found[name] = given
    return found


def without_redacted(values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return values without masked secrets, and the keys masked."""
    kept: dict[str, Any] = {}
    missing: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name], inner = without_redacted(value, f"{prefix}{name}.")
            missing += inner
        elif REDACTED in (text := json.dumps(value)):
            missing.append(prefix + name)
        elif DEFAULT not in text:
            kept[name] = copy.deepcopy(value)
    return kept, missing
