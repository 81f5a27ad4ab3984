"""Pipelines, as they are declared: which stages there are, what each needs, and in what order they run.

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
    """One step of a pipeline, which becomes a run of its own: a training, or files that are made.

    Attributes:
        name: lower case letters, digits and underscores.
        config: its configuration.
        build: makes what is trained; weights are handed on. Or:
        make: writes files into an empty folder and returns figures about them; the files are handed on.
        needs: for each key of ``config`` that names a folder handed on, the stage that it comes from.
        hands_on: which checkpoint of a training is handed on.
    """

    name: str
    config: type[Config]
    build: "Callable[[Any], Task] | None" = None
    make: Callable[[Any, Path], Mapping[str, float]] | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    hands_on: Literal["best", "latest"] = "best"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is not a name of a stage: lower case letters, digits, _ were expected.")
        if (self.build is None) == (self.make is None):
            raise UsageError(f"The stage {self.name!r} needs build= (a training) or make= (files): one of the two.")
        for key in self.needs:
            if key not in self.config.model_fields or self.config.affects_training(key):
                raise UsageError(
                    f"The stage {self.name!r} needs {key!r}, but {self.config.__name__} has no field {key}: Path | None."
                )


@dataclass(frozen=True)
class Pipeline:
    """Stages that are trained one after the other, each from what earlier ones hand on.

    Attributes:
        name: by which its runs are found again.
        stages: in any order; those that are free run as they are listed.
        config_file: a YAML file with a section a stage, and ``presets`` of such sections.

    Raises:
        UsageError: two stages of one name, a stage that is needed and missing, or stages that need each other in a circle.
    """

    name: str
    stages: Sequence[Stage]
    config_file: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is not a name of a pipeline: lower case letters, digits, _ were expected.")
        names = [stage.name for stage in self.stages]
        for name in {name for name in names if names.count(name) > 1}:
            raise UsageError(f"The pipeline {self.name!r} has two stages {name!r}.")
        object.__setattr__(self, "stages", tuple(_ordered(self.stages)))

    def stage(self, name: str) -> Stage:
        """Return a stage.

        Raises:
            UsageError: no stage has this name; the message has the nearest.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise UsageError(
            f"The pipeline {self.name!r} has no stage {name!r}.{nearest(name, names)} Stages: {', '.join(names)}."
        )

    def after(self, name: str) -> frozenset[str]:
        """Return a stage's name with those of all stages that build on it, directly or not."""
        found = {self.stage(name).name}
        for stage in self.stages:  # in order, so one pass is enough
            if found & set(stage.needs.values()):
                found.add(stage.name)
        return frozenset(found)

    def within(self, name: str, key: str) -> str:
        """Return a key as one of a single stage, unless it says of which stage it is."""
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
            files: YAML or JSON with a section a stage, laid over the pipeline's own file (which ``base`` replaces).
            preset: a name from these files, or one that some of the stages' classes have.
            overrides: ``stage.key`` for one stage, ``key`` for all that have it.
            base: resolved configurations of before.

        Raises:
            ConfigError: an unknown key, preset or type, or a key that the pipeline itself gives.
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
                if not having:
                    known = {name for stage in wanted for name in stage.config.model_fields} | given.keys()
                    raise ConfigError(
                        f"Unknown key {key!r}.{nearest(name, known)} Write STAGE.key=value for one stage, or key=value "
                        f"for all that have it. Stages: {', '.join(given)}."
                    )
                for stage in having:
                    if field_name in stage.needs:
                        raise ConfigError(
                            f"{key}: the pipeline gives it, from the stage {stage.needs[field_name]!r}. For a run of "
                            f"your own in its place: --use {stage.needs[field_name]}=RUN_ID"
                        )
                    given[stage.name][name] = value
        return given


def _ordered(stages: Sequence[Stage]) -> list[Stage]:
    """Sort by needs; among stages that are free, the one that is listed first comes first."""
    names = {stage.name for stage in stages}
    for stage in stages:
        for needed in stage.needs.values():
            if needed not in names:
                raise UsageError(
                    f"The stage {stage.name!r} needs {needed!r}, which is no stage.{nearest(needed, names)}"
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
