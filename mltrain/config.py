"""Typed configuration: a YAML or JSON file, a preset, and ``key=value`` overrides, in this order.

Text is parsed by the type of the field that it is meant for, never by YAML's guess: ``lr: 1e-3`` is a float although
PyYAML reads a string, and ``no`` stays a string where a string is wanted.
"""

import copy
import json
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mltrain.errors import ConfigError, nearest
from mltrain.redaction import DEFAULT, REDACTED, is_secret, redacted_tree, remember

NOT_GIVEN = frozenset({"", "''", '""', "none", "None", "null", "~"})
"""Words that mean "not given", so that every empty parameter of an MLproject may arrive."""

RESERVED = frozenset({"project", "resume_run", "resume_from", "fork_run", "processes", "preset", "config", "presets"})
"""Keys that belong to the command line or to the file, and can therefore not be fields of a configuration."""

_MAX_FILE_BYTES = 1_000_000


class Config(BaseModel):
    """What every training has to know. A project derives from it, overrides defaults and adds fields of its own.

    Fields of type :class:`~pathlib.Path` are places: they may change freely when a run is resumed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    seed: int = Field(0, ge=0, lt=2**32, description="Everything random follows from it.")
    epochs: int = Field(10, ge=0, description="The total, also when a run is resumed.")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps.")
    num_threads: int | None = Field(None, ge=1, description="Threads of torch on the CPU; none: torch's own choice.")
    deterministic: bool = Field(True, description="Deterministic algorithms; what has none warns.")
    amp: Literal["off", "bf16", "fp16"] = Field("off", description="Automatic mixed precision.")

    save_interval: int = Field(1, ge=0, description="A checkpoint every N epochs; 0: none by epochs.")
    save_every_steps: int = Field(0, ge=0, description="A checkpoint every N steps as well; 0: none by steps.")
    save_every_minutes: float = Field(0.0, ge=0, description="A checkpoint every N minutes as well; 0: none by time.")
    checkpoint_mode: Literal["every", "latest"] = Field(
        "every", description="every: keep the newest max_to_keep; latest: keep only the newest. The best is kept too."
    )
    max_to_keep: int = Field(5, ge=1, description="How many of the newest checkpoints stay in the tracking store.")
    retention: str | None = Field(None, description="A policy in place of the two keys above: 'Latest(3) | Best(2)'.")
    staging_gigabytes: float = Field(20.0, gt=0, description="How much may wait on this disk for a store elsewhere.")
    model_save_path: Path | None = Field(None, description="A local folder for latest and best weights as files too.")

    eval_interval: int = Field(1, ge=1, description="Evaluation, and pictures, every N epochs.")
    log_interval: int = Field(10, ge=1, description="A point of the per-step curves every N steps.")
    best_metric: str = Field("val/loss", min_length=1, description="The metric that decides which one is best.")
    best_mode: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")

    early_stopping_patience: int | None = Field(None, ge=1, description="Evaluations without improvement; none: off.")
    early_stopping_metric: str | None = Field(None, description="none: best_metric and best_mode.")
    early_stopping_mode: Literal["min", "max"] | None = Field(None, description="none: best_mode.")
    early_stopping_min_delta: float = Field(0.0, ge=0, description="A smaller improvement is none.")

    on_nonfinite: Literal["abort", "skip", "rollback"] = Field(
        "abort",
        description="What a NaN or infinite loss or gradient does; rollback: go back to the last checkpoint, data go on.",
    )
    nonfinite_limit: int = Field(
        20,
        ge=1,
        description="A training gives up after so many steps in a row with a NaN or infinite loss or gradient.",
    )
    on_usr1: Literal["stop", "checkpoint"] = Field("stop", description="What SIGUSR1 does.")

    experiment: str | None = Field(None, min_length=1, description="The MLflow experiment; none: MLflow's choice.")
    run_name: str | None = Field(None, min_length=1, description="The name of a new run; none: a made-up one.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named overlays of a project without a configuration file."""

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"device", "num_threads", "epochs", "experiment", "run_name", "save_interval", "save_every_steps"}
        | {"save_every_minutes", "checkpoint_mode", "max_to_keep", "retention", "on_usr1", "staging_gigabytes"}
        | {"nonfinite_limit"}
        | {"early_stopping_patience", "early_stopping_metric", "early_stopping_mode", "early_stopping_min_delta"}
    )
    """Fields whose change on a resume leaves the values that a step computes as they were planned."""

    output_fields: ClassVar[frozenset[str]] = frozenset({"model_save_path"})
    """Places that the training writes to; what they hold is no data, and may change freely."""

    @classmethod
    def load(
        cls,
        files: Iterable[Path] = (),
        *,
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge what is given, the later over the earlier: ``base``, each file, the preset, the overrides.

        Args:
            files: YAML or JSON files; each may hold ``presets:``, a mapping from a name to an overlay.
            preset: the name of an overlay from one of the files (the last file that has it wins), or from the class.
            overrides: dotted or plain keys; a text value is parsed by the type of its field.
            base: a configuration as :meth:`resolved` gave it, usually that of the run being resumed.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a wrong type, or a file that cannot be read.
        """
        merged, missing = _without_redacted(dict(base or {}))
        _merge(merged, _secrets_of_environment(cls))
        overlays: dict[str, Mapping[str, Any]] = dict(cls.presets)
        for file in files:
            content = read_mapping(file)
            overlays.update(_presets_of(content.pop("presets", {}), file))
            _merge(merged, cls._typed(content, str(file)))
        if preset is not None:
            if preset not in overlays:
                raise ConfigError(
                    f"There is no preset {preset!r}. {_known('presets', overlays)}{nearest(preset, overlays)}"
                )
            _merge(merged, cls._typed(overlays[preset], f"preset {preset}"))
        _merge(merged, cls._typed(overrides or {}, "the command line"))
        for key in missing:
            if not _has(merged, key.split(".")):
                raise ConfigError(
                    f"{key} was recorded without its secret. Give it again as {key}=…, or in the environment variable "
                    f"{_variable(key)}."
                )
        config = cls._validated(merged)
        remember(_secrets(config))
        return config

    @classmethod
    def overlay(cls, file: Path, preset: str) -> Mapping[str, Any]:
        """Return one preset of a file.

        Raises:
            ConfigError: the file has no such preset.
        """
        overlays = _presets_of(read_mapping(file).get("presets", {}), file)
        if preset not in overlays:
            raise ConfigError(
                f"{file} has no preset {preset!r}. {_known('presets', overlays)}{nearest(preset, overlays)}"
            )
        return overlays[preset]

    @classmethod
    def _typed(cls, given: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return ``given`` with its dotted keys nested and its texts parsed by the types of their fields."""
        typed: dict[str, Any] = {}
        for key, value in given.items():
            _merge(typed, _typed_entry(cls, str(key).split("."), str(key), value, source))
        return typed

    @classmethod
    def _validated(cls, values: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explained(cls, error)) from None

    def resolved(self) -> dict[str, Any]:
        """Every field as plain JSON values, nested as declared, and without secrets.

        ``load(base=...)`` gives the same configuration back, and asks for the secrets.
        """
        masked: dict[str, Any] = redacted_tree(_masked(self, self.model_dump(mode="json")))
        return masked

    def flattened(self) -> dict[str, str]:
        """Every field as text under its dotted key, as it is logged to MLflow."""
        return {key: _text(value) for key, value in _leaves(self.resolved())}

    def changes_from(self, earlier: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Dotted keys whose values differ from an earlier resolved configuration, each with (before, now)."""
        before = {key: _text(value) for key, value in _leaves(earlier)}
        now = self.flattened()
        absent = "(not set)"
        return {
            key: (before.get(key, absent), now.get(key, absent))
            for key in sorted(before.keys() | now.keys())
            if before.get(key, absent) != now.get(key, absent)
        }

    @classmethod
    def affects_training(cls, key: str) -> bool:
        """Whether a change of the field named by this dotted key may change what a step computes."""
        name = key.split(".")[0]
        if name in cls.execution_fields:
            return False
        field = cls.model_fields.get(name)
        return field is None or not _is_place(field.annotation)

    def places(self) -> dict[str, Path]:
        """The fields that name files or folders, where they are given."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if _is_place(field.annotation) and (value := getattr(self, name)) is not None
        }

    def data_places(self) -> dict[str, Path]:
        """The places that hold data: all but those of :attr:`output_fields`."""
        return {name: place for name, place in self.places().items() if name not in self.output_fields}


def read_mapping(file: Path) -> dict[str, Any]:
    """Read a YAML or JSON file whose top level is a mapping; every scalar of a YAML file stays text.

    Raises:
        ConfigError: the file is missing, too large, malformed, has duplicate keys, aliases or Python tags.
    """
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{file} has more than {_MAX_FILE_BYTES} bytes: no configuration is that large.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration {file} is not UTF-8 text.") from None
    except ValueError as error:  # a name with a NUL
        raise ConfigError(f"The configuration {file} cannot be read: {error}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_unique) if file.suffix == ".json" else _yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a valid {file.suffix.lstrip('.').upper() or 'YAML'} file: {error}") from None
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__} at its top level; a mapping of keys was expected.")
    return content


class _PlainLoader(yaml.SafeLoader):
    """YAML whose scalars all stay text, without aliases (they can be a bomb), tags and duplicate keys."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return _unique(
            [(self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value]
        )


_PlainLoader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(typing.cast(yaml.MappingNode, node))
)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader, made stricter above


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"keys are text; {key!r} is not")
        if key in mapping:
            raise ValueError(f"the key {key!r} stands twice")
        mapping[key] = value
    return mapping


def _presets_of(content: Any, file: Path) -> dict[str, Mapping[str, Any]]:
    if isinstance(content, dict) and all(isinstance(overlay, dict) or overlay == "" for overlay in content.values()):
        return {name: overlay or {} for name, overlay in content.items()}
    raise ConfigError(f"{file}: 'presets' has to map each name to a mapping of keys.")


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _typed_entry(model: type[BaseModel], path: list[str], key: str, value: Any, source: str) -> dict[str, Any]:
    name, rest = path[0], path[1:]
    field = model.model_fields.get(name)
    if field is None:
        known = [known for known in model.model_fields if known not in RESERVED]
        hint = " It belongs on the command line." if name in RESERVED else nearest(name, known)
        raise ConfigError(f"Unknown key {key!r} (from {source}).{hint} {_known('keys', known)}")
    nested = _model_in(field.annotation)
    if rest:
        if nested is None:
            raise ConfigError(f"Unknown key {key!r} (from {source}): {name!r} has no keys of its own.")
        return {name: _typed_entry(nested, rest, key, value, source)}
    if nested is not None and isinstance(value, Mapping):
        inner: dict[str, Any] = {}
        for sub, sub_value in value.items():
            _merge(inner, _typed_entry(nested, str(sub).split("."), f"{key}.{sub}", sub_value, source))
        return {name: inner}
    parsed = _parsed(field, value, key, source)
    # What is not given and has no default is as if it were absent.
    return {} if parsed is PydanticUndefined else {name: parsed}


def _parsed(field: FieldInfo, value: Any, key: str, source: str) -> Any:
    if not isinstance(value, str):
        return value
    if _is_place(field.annotation) and value not in NOT_GIVEN:
        try:
            return str(Path(value).expanduser().absolute())  # so that a resume finds it from anywhere on this machine
        except RuntimeError as error:
            raise ConfigError(f"{key} (from {source}): {value!r:.80} is no path here: {error}") from None
    if value in NOT_GIVEN:
        if _allows(field.annotation, type(None)):
            return None
        if _allows(field.annotation, str) and value in ("", "''", '""'):
            return ""
        return field.get_default(call_default_factory=True)
    if not _allows(field.annotation, str) and value[:1] in "[{" and _allows_collection(field.annotation):
        try:
            return _yaml(value)
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


def _allows(annotation: Any, wanted: type) -> bool:
    return wanted in _members(annotation)


def _allows_collection(annotation: Any) -> bool:
    return any(
        (typing.get_origin(member) or member) in (list, tuple, dict, set, frozenset) for member in _members(annotation)
    )


def _is_place(annotation: Any) -> bool:
    return _allows(annotation, Path)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _is_secret(name: str, field: FieldInfo, value: str) -> bool:
    return _allows(field.annotation, SecretStr) or (_allows(field.annotation, str) and is_secret(name, value))


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _secrets(config: BaseModel) -> Iterator[str]:
    """Yield the values of a configuration that are secrets."""
    for name, field in type(config).model_fields.items():
        value = _plain(getattr(config, name))
        if isinstance(value, BaseModel):
            yield from _secrets(value)
        elif isinstance(value, str) and _is_secret(name, field, value):
            yield value


def _masked(config: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    masked = dict(values)
    for name, field in type(config).model_fields.items():
        value = _plain(getattr(config, name))
        if isinstance(value, BaseModel) and isinstance(values.get(name), dict):
            masked[name] = _masked(value, values[name])
        elif value and isinstance(value, str) and _is_secret(name, field, value):
            masked[name] = DEFAULT if value == _plain(field.get_default(call_default_factory=True)) else REDACTED
    return masked


def _variable(key: str) -> str:
    return f"MLTRAIN_{key.upper().replace('.', '__')}"


def _secrets_of_environment(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the secrets of a configuration that stand in the environment: ``api_key`` as ``MLTRAIN_API_KEY``."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        if nested is not None:
            inner = _secrets_of_environment(nested, f"{prefix}{name}.")
            if inner:
                found[name] = inner
        elif (given := os.environ.get(_variable(prefix + name))) and _is_secret(name, field, given):
            found[name] = given
    return found


def _without_redacted(values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return recorded values without those whose secrets were taken out, and the keys of these."""
    kept: dict[str, Any] = {}
    missing: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name], inner = _without_redacted(value, f"{prefix}{name}.")
            missing += inner
        elif REDACTED in (text := json.dumps(value)):
            missing.append(prefix + name)
        elif DEFAULT not in text:
            kept[name] = copy.deepcopy(value)
    return kept, missing


def _has(tree: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _known(what: str, names: Iterable[str]) -> str:
    listed = ", ".join(sorted(names))
    return f"Known {what}: {listed}." if listed else f"There are no {what}."


def _explained(model: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        field = model.model_fields.get(str(detail["loc"][0])) if detail["loc"] else None
        if detail["type"] == "extra_forbidden":
            lines.append(f"Unknown key {key!r}.{nearest(key, model.model_fields)}")
            continue
        if detail["type"] == "missing":
            lines.append(f"{key} has no default and was not given.")
            continue
        meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        lines.append(f"{key}={detail['input']!r} is not accepted: {detail['msg'].lower()}{meaning}.")
    return "\n".join(lines)
