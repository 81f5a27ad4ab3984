"""Typed configuration: file, then preset, then ``key=value`` overrides.

The type of a field decides how its text is parsed, never YAML's guess: ``lr: 1e-3`` is a float although
PyYAML reads a string, and ``no`` stays a string in a text field.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mltrain.configuration.aliases import RESUME_KEY, own_words
from mltrain.configuration.fields import as_text, explained, is_place, leaves, merge, typed_entry
from mltrain.configuration.files import known_names, presets_of, read_mapping
from mltrain.configuration.secrets import (
    masked_secrets,
    secrets_of,
    secrets_of_environment,
    variable_of,
    without_redacted,
)
from mltrain.errors import ConfigError, nearest
from mltrain.redaction import redacted_tree, remember


class Config(BaseModel):
    """The configuration keys of every training.

    A project subclasses it, overrides defaults and adds its own fields. Fields of type :class:`~pathlib.Path` are
    locations, and may change freely when a run is resumed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")
    epochs: int = Field(10, ge=0, description="Total number of epochs, also when a run is resumed.")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps.")
    num_threads: int | None = Field(None, ge=1, description="Threads of torch on the CPU. Default: torch's own choice.")
    deterministic: bool = Field(True, description="Use deterministic algorithms; warn for operations that have none.")
    amp: Literal["off", "bf16", "fp16"] = Field("off", description="Automatic mixed precision.")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Of several processes: replicas (ddp) or shards (fsdp)."
    )

    save_interval: int = Field(1, ge=0, description="Save a checkpoint every N epochs; 0: never.")
    save_every_steps: int = Field(0, ge=0, description="Also save a checkpoint every N steps; 0: never.")
    save_every_minutes: float = Field(0.0, ge=0, description="Also save a checkpoint every N minutes; 0: never.")
    checkpoint_mode: Literal["every", "latest"] = Field(
        "every", description="every: keep the newest max_to_keep; latest: keep only the newest. The best is kept too."
    )
    max_to_keep: int = Field(5, ge=1, description="Number of newest checkpoints to keep in the artifact store.")
    retention: str | None = Field(None, description="A policy that replaces the two keys above: 'Latest(3) | Best(2)'.")
    staging_gigabytes: float = Field(20.0, gt=0, description="How much may wait on this disk for a remote store.")
    model_save_path: Path | None = Field(None, description="Local folder for copies of the latest and best weights.")
    export: Literal["weights", "full"] = Field(
        "weights", description="What to copy to model_save_path; full: whole checkpoints for --resume FILE."
    )
    checkpoint_path: Path | None = Field(
        None, description="Local file for a copy of the newest whole checkpoint, for --resume FILE."
    )

    logged_models: Literal["none", "best", "kept"] = Field(
        "none", description="Checkpoints to log as LoggedModels of MLflow at the end: none, the best, or all kept."
    )

    eval_interval: int = Field(1, ge=1, description="Evaluate and draw pictures every N epochs.")
    log_interval: int = Field(10, ge=1, description="Record the per-step curves every N steps.")
    best_metric: str = Field("val/loss", min_length=1, description="The metric that decides which checkpoint is best.")
    best_mode: Literal["min", "max"] = Field("min", description="Whether a lower or higher value is better.")

    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without improvement. Default: off."
    )
    early_stopping_metric: str | None = Field(None, description="Default: best_metric and best_mode.")
    early_stopping_mode: Literal["min", "max"] | None = Field(None, description="Default: best_mode.")
    early_stopping_min_delta: float = Field(0.0, ge=0, description="Smallest change that counts as an improvement.")

    on_nonfinite: Literal["abort", "skip", "rollback"] = Field(
        "abort",
        description="Response to a NaN or infinite loss or gradient; rollback restores the last checkpoint.",
    )
    nonfinite_limit: int = Field(20, ge=1, description="Give up after this many such losses or gradients in a row.")
    on_usr1: Literal["stop", "checkpoint"] = Field("stop", description="At SIGUSR1: stop, or save and continue.")

    experiment: str | None = Field(
        None, min_length=1, max_length=500, description="The MLflow experiment. Default: the project's name."
    )
    run_name: str | None = Field(
        None, min_length=1, description="The name of a new run. Default: time, what differs, project."
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Presets of a project without a configuration file."""

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"device", "num_threads", "strategy", "epochs", "experiment", "run_name", "save_interval", "save_every_steps"}
        | {"save_every_minutes", "checkpoint_mode", "max_to_keep", "retention", "on_usr1", "staging_gigabytes"}
        | {"nonfinite_limit", "export", "logged_models"}
        | {"early_stopping_patience", "early_stopping_metric", "early_stopping_mode", "early_stopping_min_delta"}
    )
    """Fields that may change on a resume without changing the values that a step computes."""

    output_fields: ClassVar[frozenset[str]] = frozenset({"model_save_path", "checkpoint_path"})
    """Locations that the training writes to; their contents are not data, and may change freely."""

    @classmethod
    def load(
        cls,
        files: Iterable[Path] = (),
        *,
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge ``base``, each file, the preset and the overrides; later ones win.

        Args:
            files: YAML or JSON files; each may hold ``presets:``, a mapping from a name to an overlay, and a section
                ``training:``, whose keys are read like top-level ones.
            preset: the name of an overlay from one of the files (the last file that has it wins), or from the class.
            overrides: dotted or plain keys; a text value is parsed by the type of its field.
            base: a configuration from :meth:`resolved`, usually that of the run being resumed.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a wrong type, or a file that cannot be read.
        """
        merged, missing = without_redacted(dict(base or {}))
        merge(merged, secrets_of_environment(cls))
        overlays: dict[str, Mapping[str, Any]] = dict(cls.presets)
        for file in files:
            content = own_words(read_mapping(file), cls.model_fields, str(file))
            if RESUME_KEY not in cls.model_fields:
                content.pop(RESUME_KEY, None)  # it is part of the request, see mltrain.commands.resume_target
            overlays.update(presets_of(content.pop("presets", {}), file))
            merge(merged, cls._typed(content, str(file)))
        if preset is not None:
            merge(merged, cls._typed(_chosen(preset, overlays, f"There is no preset {preset!r}."), f"preset {preset}"))
        merge(merged, cls._typed(overrides or {}, "the command line"))
        for key in missing:
            if not _has(merged, key.split(".")):
                raise ConfigError(
                    f"{key} was recorded without its secret. Give it again as {key}=…, or in the environment variable "
                    f"{variable_of(key)}."
                )
        config = cls._validated(merged)
        remember(secrets_of(config))
        return config

    @classmethod
    def overlay(cls, file: Path, preset: str) -> Mapping[str, Any]:
        """Return one preset of a file.

        Raises:
            ConfigError: the file has no such preset.
        """
        overlays = presets_of(read_mapping(file).get("presets", {}), file)
        return _chosen(preset, overlays, f"{file} has no preset {preset!r}.")

    @classmethod
    def _typed(cls, given: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return nested keys, with values parsed by field types."""
        typed: dict[str, Any] = {}
        for key, value in own_words(given, cls.model_fields, source).items():
            merge(typed, typed_entry(cls, str(key).split("."), str(key), value, source))
        return typed

    @classmethod
    def _validated(cls, values: Mapping[str, Any]) -> Self:
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explained(cls, error)) from None
        # Not in a validator, because a project's own validators come first.
        for key, rate in leaves(config.model_dump()):
            is_rate = key.rpartition(".")[2] in ("lr", "learning_rate") and isinstance(rate, float)
            if is_rate and not (math.isfinite(rate) and rate >= 0):
                raise ConfigError(f"{key}={rate} is not accepted. Expected a finite learning rate of at least 0.")
        return config

    def resolved(self) -> dict[str, Any]:
        """Return every field as JSON values, nested, without secrets.

        ``load(base=...)`` restores the same configuration, and asks for the secrets.
        """
        masked: dict[str, Any] = redacted_tree(masked_secrets(self, self.model_dump(mode="json")))
        return masked

    def flattened(self) -> dict[str, str]:
        """Return all fields by dotted key, as text for MLflow."""
        return {key: as_text(value) for key, value in leaves(self.resolved())}

    def recorded(self) -> dict[str, str]:
        """Return the parameters for MLflow: the fields with an effect.

        The project's own keys come first, because MLflow's UI shows parameters in the order of logging. Fields without a value,
        of features that are switched off, and those that MLflow shows already are left out; ``config.json`` has all of them.
        """
        left_out = {"experiment", "run_name"}
        left_out |= {name for name, off in _SWITCHES.items() if getattr(self, name) == off}
        left_out |= {name for name, (switch, off) in _PARTS.items() if getattr(self, switch) == off}
        if self.retention is not None:
            left_out |= {"max_to_keep", "checkpoint_mode"}
        own_first = sorted(self.resolved().items(), key=lambda field: field[0] in Config.model_fields)
        tree = {name: value for name, value in own_first if name not in left_out and value is not None}
        return {key: as_text(value) for key, value in leaves(tree) if value is not None}

    def changes_from(self, earlier: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Return keys that differ from an earlier configuration: (before, now)."""
        before = {key: as_text(value) for key, value in leaves(earlier)}
        now = self.flattened()
        absent = "(not set)"
        return {
            key: (before.get(key, absent), now.get(key, absent))
            for key in sorted(before.keys() | now.keys())
            if before.get(key, absent) != now.get(key, absent)
        }

    @classmethod
    def affects_training(cls, key: str) -> bool:
        """Return whether a dotted key may affect a step's result."""
        name = key.split(".")[0]
        if name in cls.execution_fields:
            return False
        field = cls.model_fields.get(name)
        return field is None or not is_place(field.annotation)

    def places(self) -> dict[str, Path]:
        """Return the set fields that name a file or folder."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if is_place(field.annotation) and (value := getattr(self, name)) is not None
        }

    def data_places(self) -> dict[str, Path]:
        """Return the locations of data: all except :attr:`output_fields`."""
        return {name: place for name, place in self.places().items() if name not in self.output_fields}

    def without_effect(self) -> dict[str, str]:
        """Return keys set without effect, each with its switch."""
        fields = type(self).model_fields
        return {
            name: switch
            for name, (switch, off) in _PARTS.items()
            if getattr(self, switch) == off and getattr(self, name) != fields[name].default
        }

    def sample_data(self) -> Mapping[str, Path | str]:
        """Return the project's default data, for the run's record.

        The project uses these data if no key names any. The default implementation returns no data.

        Returns:
            For each name the file or folder that holds the data; for generated data a text with the generator and all its
            arguments. A name that begins with ``val`` or ``test`` is recorded as evaluation data.
        """
        return {}


_SWITCHES: Mapping[str, Any] = {
    "amp": "off",
    "strategy": "ddp",
    "save_every_steps": 0,
    "save_every_minutes": 0.0,
    "logged_models": "none",
}
"""Fields that switch something on, and the value that leaves it off."""
_PARTS: Mapping[str, tuple[str, Any]] = {
    "early_stopping_metric": ("early_stopping_patience", None),
    "early_stopping_mode": ("early_stopping_patience", None),
    "early_stopping_min_delta": ("early_stopping_patience", None),
    "nonfinite_limit": ("on_nonfinite", "abort"),
}
"""Fields without an effect while another field has the value that switches them off."""


def _chosen(preset: str, overlays: Mapping[str, Mapping[str, Any]], problem: str) -> Mapping[str, Any]:
    if preset not in overlays:
        raise ConfigError(f"{problem} {known_names('presets', overlays)}{nearest(preset, overlays)}")
    return overlays[preset]


def _has(tree: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
