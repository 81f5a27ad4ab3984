"""What is to be done about a stage, and why: from what is wanted and what there is. Nothing is done here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mltrain.config import Config
from mltrain.pipeline import Stage

StageMode = Literal["scratch", "resume", "skip"]
Action = Literal["skip", "resume", "run"]

_LENGTH = frozenset({"epochs"} | {f"early_stopping_{what}" for what in ("patience", "metric", "mode", "min_delta")})
"""Keys that may change while a training goes on, and that decide where it ends: another value is another model."""


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
        changes: what differs from what is wanted.
        where: how far it came, in words.
        damage: of a finished one, what is wrong with its output; none: it is intact.
        recoverable: whether its output can be made again in the same run, from an earlier checkpoint.
    """

    run_id: str
    state: str
    changes: Changes
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


def preferred(stage: Stage, found: Sequence[Found], mode: StageMode) -> Found | None:
    """Return the run that would be kept or continued, of those there are, the newest first; else the newest."""
    for finished in (True, False):
        for one in found:
            if (one.state == "finished") == finished and decide(stage, one, mode).action != "run":
                return one
    return found[0] if found else None


def decide(stage: Stage, found: Found | None, mode: StageMode) -> Decision:
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
