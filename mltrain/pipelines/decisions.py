"""Decides whether to skip, resume or run a stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mltrain.config import Config
from mltrain.pipeline import Stage

StageMode = Literal["scratch", "resume", "skip"]
Action = Literal["skip", "resume", "run"]

_LENGTH = frozenset({"epochs"} | {f"early_stopping_{what}" for what in ("patience", "metric", "mode", "min_delta")})
"""Keys that decide when a training ends, so that another value gives another model."""


@dataclass(frozen=True)
class Recipe:
    """What determines a stage's output, as requested now.

    Attributes:
        config: the whole configuration.
        inputs: for each key of ``needs``, the digest of that stage's output.
        data: fingerprints of other paths in the configuration.
        code: digest of the stage's code.
    """

    config: Config
    inputs: Mapping[str, str]
    data: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class Record:
    """What determined the output of an existing run, as recorded."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    data: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class Changes:
    """What differs between a run and the request, by kind."""

    config: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    data: Sequence[str] = ()
    code: bool = False

    def __bool__(self) -> bool:
        return bool(self.config or self.inputs or self.data or self.code)

    def __str__(self) -> str:
        parts = [f"{key} {before} → {now}" for key, (before, now) in self.config.items()]
        parts += [f"another input {key}" for key in self.inputs] + [f"other data in {key}" for key in self.data]
        return "; ".join(parts + ["other code"] * self.code)


def changes(record: Record, recipe: Recipe) -> Changes:
    """Compare a run with the request.

    Keys that do not affect the outcome (device, checkpoints, names) are ignored.
    """
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
    """An existing run of a stage.

    Attributes:
        run_id: the run's id.
        state: ``finished``, ``stopped``, ``failed``, ``dead``, ``running`` or ``running elsewhere``.
        changes: what differs from the request.
        where: its progress, in words.
        damage: the problem with the output of a finished run. If ``None``, the output is intact.
        recoverable: whether the run can produce its output again from an earlier checkpoint.
    """

    run_id: str
    state: str
    changes: Changes
    where: str = ""
    damage: str | None = None
    recoverable: bool = False


@dataclass(frozen=True)
class Decision:
    """The action for a stage, the reason, and the run."""

    stage: str
    action: Action
    why: str
    run_id: str | None = None


def preferred(stage: Stage, found: Sequence[Found], mode: StageMode) -> Found | None:
    """Return the run to keep or continue, or the newest.

    A finished run is preferred to an unfinished one; ``found`` lists the newest first.
    """
    for finished in (True, False):
        for one in found:
            if (one.state == "finished") == finished and decide(stage, one, mode).action != "run":
                return one
    return found[0] if found else None


_TABLE: tuple[tuple[str, Action, str], ...] = (
    ("scratch", "run", "requested"),
    ("absent", "run", "it has no run yet"),
    ("inputs", "run", "changed: {changes}"),
    ("skip changed", "run", "changed: {changes}"),
    ("finished data", "run", "changed: {changes}"),
    ("files config", "run", "changed: {changes}"),
    ("finished config outcome", "run", "changed: {changes}"),
    ("finished config", "resume", "finished, but its length changed: {changes}"),
    ("unfinished", "resume", "{where}{but}"),
    ("intact", "skip", "finished, and its output is intact{but}"),
    ("recoverable", "resume", "its output is damaged ({damage}); it is made again from an intact checkpoint{but}"),
    ("", "run", "its output is damaged ({damage})"),
)
"""Rows of facts, action and reason; the first row whose facts all hold decides."""


def _facts(stage: Stage, found: Found | None, mode: StageMode) -> frozenset[str]:
    if found is None:
        return frozenset({mode, "absent"})
    changed, finished = found.changes, found.state == "finished"
    facts: dict[str, object] = {
        mode: True,
        "finished": finished,
        "unfinished": not finished,
        "files": stage.make is not None,
        "changed": changed,
        "inputs": changed.inputs,
        "data": changed.data,
        "config": changed.config,
        "outcome": changed.config.keys() - _LENGTH,
        "intact": found.damage is None,
        "recoverable": found.recoverable,
    }
    return frozenset(name for name, holds in facts.items() if holds)


def decide(stage: Stage, found: Found | None, mode: StageMode) -> Decision:
    """Decide what to do with a stage, given a run.

    ``skip`` keeps an intact run and continues an unfinished one, if nothing has changed; otherwise it starts a new run.
    ``resume`` continues the run: changed code is only reported; a changed configuration applies to an unfinished training,
    and to a finished one if only its length changed. ``scratch`` starts a new run.
    """
    facts = _facts(stage, found, mode)
    action, why = next((action, why) for needed, action, why in _TABLE if facts.issuperset(needed.split()))
    if found is None:
        return Decision(stage.name, action, why)
    why = why.format(
        changes=found.changes,
        where=f"{found.state}{f' at {found.where}' if found.where else ''}",
        but=f"; changed since: {found.changes}" if found.changes else "",
        damage=found.damage,
    )
    return Decision(stage.name, action, why, found.run_id if action != "run" else None)
