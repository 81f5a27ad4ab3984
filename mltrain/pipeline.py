"""Pipelines: which stages there are, in what order they run, and what is to be done about each. Nothing is done here.

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
from typing import Any, Literal

from mltrain.config import Config, nearest, read_mapping
from mltrain.errors import ConfigError, UsageError
from mltrain.trainer import Task

Mode = Literal["scratch", "resume", "skip"]
Action = Literal["skip", "resume", "run"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_LENGTH = frozenset({"epochs"} | {f"early_stopping_{what}" for what in ("patience", "metric", "mode", "min_delta")})
"""Keys that may change while a training goes on, and that decide where it ends: another value is another model."""


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
    build: Callable[[Any], Task] | None = None
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
            UsageError: there is none of this name; the message has the nearest.
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
        own = [self.config_file] if self.config_file is not None and not base else []
        sections, presets = self._read([*own, *files])
        if preset is not None and self.config_file is not None and base:
            presets = self._read([self.config_file, *files])[1]
        if preset is not None and preset not in presets and not any(preset in s.config.presets for s in self.stages):
            known = sorted({*presets, *(name for stage in self.stages for name in stage.config.presets)})
            raise ConfigError(
                f"There is no preset {preset!r}.{nearest(preset, known)} Known presets: {', '.join(known) or 'none'}."
            )
        given = self._shared_out(overrides or {})
        found = {}
        for stage in self.stages:
            own_preset = preset if preset in stage.config.presets and preset not in presets else None
            before = stage.config.load(base=(base or {}).get(stage.name), overrides=sections.get(stage.name, {}))
            overlay = presets.get(preset or "", {}).get(stage.name, {})
            middle = stage.config.load(base=before.resolved(), preset=own_preset, overrides=overlay)
            found[stage.name] = stage.config.load(base=middle.resolved(), overrides=given[stage.name])
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
        for only_one in (False, True):  # what is said of one stage counts more than what is said of all
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


@dataclass(frozen=True)
class Recipe:
    """What a stage's output follows from, as it is wanted now.

    Attributes:
        config: the whole configuration.
        inputs: for each key of ``needs``, the digest of what is handed on.
        data: fingerprints of other places that the configuration names.
        code: digest of the stage's code.
    """

    config: Config
    inputs: Mapping[str, str]
    data: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class Record:
    """The same of a run that there is, as it was recorded."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    data: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class Changes:
    """What differs between a run and what is wanted, in words: by kind."""

    config: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    data: Sequence[str] = ()
    code: bool = False

    def __bool__(self) -> bool:
        return bool(self.config or self.inputs or self.data or self.code)

    def __str__(self) -> str:
        said = [f"{key} {before} → {now}" for key, (before, now) in self.config.items()]
        said += [f"another input {key}" for key in self.inputs] + [f"other data in {key}" for key in self.data]
        return "; ".join(said + ["other code"] * self.code)


def changes(record: Record, recipe: Recipe) -> Changes:
    """Compare a run with what is wanted. Keys that leave the outcome alone (device, checkpoints, names) do not count."""
    kind = type(recipe.config)

    def matters(key: str) -> bool:
        name = key.split(".")[0]
        return name in _LENGTH or (name != "log_interval" and kind.affects_training(key))

    return Changes(
        {key: change for key, change in recipe.config.changes_from(record.config).items() if matters(key)},
        sorted(key for key, digest in recipe.inputs.items() if record.inputs.get(key) != digest),
        sorted(key for key in recipe.data.keys() | record.data.keys() if recipe.data.get(key) != record.data.get(key)),
        recipe.code != record.code,
    )


@dataclass(frozen=True)
class Found:
    """A run of a stage that there is.

    Attributes:
        run_id: of the run.
        state: ``finished``, ``stopped``, ``failed``, ``dead``, ``running`` or ``running elsewhere``.
        changes: what differs from what is wanted; none: it was killed before it had recorded anything.
        where: how far it came, in words.
        damage: of a finished one, what is wrong with its output; none: it is intact.
        recoverable: whether its output can be made again in the same run, from an earlier checkpoint.
    """

    run_id: str
    state: str
    changes: Changes | None
    where: str = ""
    damage: str | None = None
    recoverable: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done about a stage, and why. ``run_id``: of the run that is kept or continued."""

    stage: str
    action: Action
    why: str
    run_id: str | None = None


def preferred(stage: Stage, found: Sequence[Found], mode: Mode) -> Found | None:
    """Return the run that would be kept or continued, of those there are, the newest first; else the newest."""
    for finished in (True, False):
        for one in found:
            if (one.state == "finished") == finished and decide(stage, one, mode).action != "run":
                return one
    return found[0] if found else None


def decide(stage: Stage, found: Found | None, mode: Mode) -> Decision:
    """Return what is to be done about a stage, given a run of it.

    ``skip``: an unchanged and intact one is kept, an unchanged and unfinished one continued; any change means a new run.
    ``resume``: continues what there is. Other code is said, and stops nothing; another configuration continues an
    unfinished training, and a finished one where only its length changed. ``scratch``: a new run.
    """

    def say(action: Action, why: str) -> Decision:
        return Decision(stage.name, action, why, found.run_id if found is not None and action != "run" else None)

    if mode == "scratch":
        return say("run", "asked for")
    if found is None:
        return say("run", "there is no run of it")
    changed = found.changes
    if changed is None:
        return say("run", "its run was killed before it had recorded anything")
    finished = found.state == "finished"
    if changed.inputs or (mode == "skip" and changed) or (finished and changed.data):
        return say("run", f"changed: {changed}")
    if changed.config and (stage.make is not None or (finished and not changed.config.keys() <= _LENGTH)):
        return say("run", f"changed: {changed}")
    but = f"; changed since: {changed}" if changed else ""
    if finished and changed.config:
        return say("resume", f"finished, and now longer or shorter: {changed}")
    if not finished:
        return say("resume", f"{found.state}{f' at {found.where}' if found.where else ''}{but}")
    if found.damage is None:
        return say("skip", f"finished, and its output is intact{but}")
    if found.recoverable:
        return say("resume", f"its output is damaged ({found.damage}); made again from what is intact{but}")
    return say("run", f"its output is damaged ({found.damage})")


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
