"""Declarations of pipelines: their stages, the needs of each, and their order.

>>> PIPELINE = mltrain.Pipeline("cells", [
...     mltrain.Stage("crops", crops.Config, make=crops.cut),
...     mltrain.Stage("encoder", encoder.Config, build=encoder.build, needs={"crops": "crops"}),
...     mltrain.Stage("classifier", head.Config, build=head.build, needs={"crops": "crops", "weights": "encoder"}),
... ])
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mltrain.config import Config
from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError, UsageError, nearest

if TYPE_CHECKING:
    from mltrain.task import Task

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Stage:
    """A pipeline's stage with its own run: training or files.

    Attributes:
        name: lower case letters, digits and underscores.
        config: its configuration class.
        build: builds the task of a training; the output of the stage is its weights. Or:
        make: writes files into an empty folder and returns figures about them; the output is the files.
        needs: for each key of ``config`` that names a folder of inputs, the stage that produces it.
        hands_on: which checkpoint of a training is the output.
    """

    name: str
    config: type[Config]
    build: "Callable[[Any], Task] | None" = None
    make: Callable[[Any, Path], Mapping[str, float]] | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    hands_on: Literal["best", "latest"] = "best"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"The stage name {self.name!r} is invalid. Expected lower case letters, digits and _.")
        if (self.build is None) == (self.make is None):
            raise UsageError(
                f"The stage {self.name!r} is invalid. Expected either build= (a training) or make= (files)."
            )
        for key in self.needs:
            if key not in self.config.model_fields or self.config.affects_training(key):
                raise UsageError(
                    f"The stage {self.name!r} needs {key!r}, but {self.config.__name__} has no field {key}: Path | None."
                )


@dataclass(frozen=True)
class Pipeline:
    """Stages that run in turn on outputs of earlier ones.

    Attributes:
        name: mltrain finds the runs of the pipeline by it.
        stages: in any order; independent stages run in the order of this list.
        config_file: a YAML file with one section per stage, and ``presets`` of such sections.

    Raises:
        UsageError: two stages have the same name, a needed stage is missing, or stages need each other in a circle.
    """

    name: str
    stages: Sequence[Stage]
    config_file: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"The pipeline name {self.name!r} is invalid. Expected lower case letters, digits and _.")
        names = [stage.name for stage in self.stages]
        for name in {name for name in names if names.count(name) > 1}:
            raise UsageError(f"The pipeline {self.name!r} has two stages {name!r}.")
        object.__setattr__(self, "stages", tuple(_ordered(self.stages)))

    def stage(self, name: str) -> Stage:
        """Return a stage.

        Raises:
            UsageError: no stage has this name; the message suggests the nearest.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise UsageError(
            f"The pipeline {self.name!r} has no stage {name!r}.{nearest(name, names)} Stages: {', '.join(names)}."
        )

    def after(self, name: str) -> frozenset[str]:
        """Return the names of a stage and its dependent stages."""
        found = {self.stage(name).name}
        for stage in self.stages:  # in order, so one pass is enough
            if found & set(stage.needs.values()):
                found.add(stage.name)
        return frozenset(found)

    def within(self, name: str, key: str) -> str:
        """Return a key that begins with the stage's name."""
        return key if key.partition(".")[0] in {stage.name for stage in self.stages} else f"{name}.{key}"

    def configs(
        self,
        *,
        files: Sequence[Path] = (),
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        base: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Config]:
        """Return the configuration of every stage.

        Args:
            files: YAML or JSON with one section per stage; they override the pipeline's own file, which ``base`` replaces.
            preset: a name from these files, or from the class of a stage.
            overrides: ``stage.key`` for one stage, ``key`` for all stages that have it.
            base: earlier resolved configurations.

        Raises:
            ConfigError: an unknown key or preset, a wrong type, or a key that the pipeline itself sets.
        """
        before = base or {}
        own_sections, own_presets = self._read([self.config_file] if self.config_file is not None else [])
        sections, presets = self._read(files)
        presets = own_presets | presets
        if preset is not None and preset not in presets and not any(preset in s.config.presets for s in self.stages):
            known = sorted({*presets, *(name for stage in self.stages for name in stage.config.presets)})
            raise ConfigError(
                f"There is no preset {preset!r}.{nearest(preset, known)} Known presets: {', '.join(known) or 'none'}."
            )
        given = self._shared_out(overrides or {})
        found = {}
        for stage in self.stages:
            name = stage.name
            section = {**({} if name in before else own_sections.get(name, {})), **sections.get(name, {})}
            config = stage.config.load(base=before.get(name), overrides=section)
            class_preset = preset if preset in stage.config.presets and preset not in presets else None
            overlay = presets.get(preset or "", {}).get(name, {})
            config = stage.config.load(base=config.resolved(), preset=class_preset, overrides=overlay)
            found[name] = stage.config.load(base=config.resolved(), overrides=given[name])
        return found

    def _read(self, files: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        sections: dict[str, dict[str, Any]] = {}
        presets: dict[str, dict[str, Any]] = {}
        for file in files:
            content = read_mapping(file)
            for name, overlay in (content.pop("presets", None) or {}).items():
                presets[name] = overlay or {}
            for name, section in content.items():
                sections.setdefault(self.stage(name).name, {}).update(section or {})
        return sections, presets

    def _shared_out(self, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        given: dict[str, dict[str, Any]] = {stage.name: {} for stage in self.stages}
        for only_one in (False, True):  # a stage's own value overrides that for all stages
            for key, value in overrides.items():
                head, dot, rest = key.partition(".")
                if bool(dot and head in given) != only_one:
                    continue
                wanted, name = ([self.stage(head)], rest) if only_one else (list(self.stages), key)
                field_name = name.split(".")[0]
                having = [stage for stage in wanted if field_name in stage.config.model_fields]
                if not having and only_one:
                    raise ConfigError(
                        f"Unknown key {key!r}: the stage {head!r} has no key {name!r}."
                        f"{nearest(field_name, wanted[0].config.model_fields)}"
                    )
                if not having:
                    known = {name for stage in wanted for name in stage.config.model_fields} | given.keys()
                    raise ConfigError(
                        f"Unknown key {key!r}.{nearest(name, known)} Write STAGE.key=value for one stage, or key=value "
                        f"for all that have it. Stages: {', '.join(given)}."
                    )
                for stage in having:
                    if field_name in stage.needs:
                        raise ConfigError(
                            f"{key} is set by the pipeline to the output of the stage {stage.needs[field_name]!r}. To use "
                            f"a run of your own instead, try: --use {stage.needs[field_name]}=RUN_ID"
                        )
                    given[stage.name][name] = value
        return given


def _ordered(stages: Sequence[Stage]) -> list[Stage]:
    """Sort stages by needs; among independent stages keep their order."""
    names = {stage.name for stage in stages}
    for stage in stages:
        for needed in stage.needs.values():
            if needed not in names:
                raise UsageError(
                    f"The stage {stage.name!r} needs {needed!r}, which does not exist.{nearest(needed, names)}"
                )
    done: list[Stage] = []
    left = list(stages)
    while left:
        ready = {stage.name for stage in done}
        free = next((stage for stage in left if ready >= set(stage.needs.values())), None)
        if free is None:
            circle = ", ".join(
                f"{stage.name} needs {' and '.join(sorted(set(stage.needs.values())))}" for stage in left
            )
            raise UsageError(f"These stages need each other in a circle: {circle}.")
        done.append(free)
        left.remove(free)
    return done
