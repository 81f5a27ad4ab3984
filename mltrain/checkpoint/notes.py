"""Notes on checkpoints that were declared after their commit.

A note adds metrics to a checkpoint or declares it best.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.retention import Context
from mltrain.errors import MltrainError
from mltrain.store.artifacts import Artifacts

NOTES_FILE = "best.json"
"""The artifact that holds a run's notes, because manifests do not change after the commit.

``checkpoint`` is the newest checkpoint declared best, the only entry that older versions wrote. ``notes`` lists all notes.
"""


@dataclass(frozen=True)
class Note:
    """Later declarations on a checkpoint: best, and additional metrics."""

    best: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)

    def over(self, manifest: Manifest) -> Manifest:
        """Return a manifest with this note applied."""
        return manifest.model_copy(
            update={"best": manifest.best or self.best, "metrics": {**manifest.metrics, **self.metrics}}
        )


class Notes:
    """The notes of one run.

    Threads may read them while another thread adds one.

    Args:
        notes: checkpoint to its note.
        context: defines the best checkpoint where no note does.
    """

    def __init__(self, notes: Mapping[CheckpointId, Note], context: Context) -> None:
        self._notes = dict(notes)
        self._context = context

    @classmethod
    def read(cls, artifacts: Artifacts, context: Context) -> Self:
        """Read the recorded notes.

        An unreadable or malformed file counts as empty.
        """
        try:
            content = json.loads(artifacts.read(NOTES_FILE, 2**20))
            rows = content.get("notes", [{"checkpoint": content.get("checkpoint"), "best": True}])
            found = {CheckpointId.parse(row["checkpoint"]): _note_of(row) for row in rows}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MltrainError):
            return cls({}, context)
        return cls({identity: note for identity, note in found.items() if identity is not None}, context)

    @property
    def context(self) -> Context:
        """The policies' context with the declared best and current time."""
        return replace(self._context, now=now(), declared=_newest_best(self._notes))

    def over(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Return the manifests with their notes applied."""
        notes = self._notes
        return [notes[manifest.id].over(manifest) if manifest.id in notes else manifest for manifest in manifests]

    def add(self, manifest: Manifest, metrics: Mapping[str, float], *, best: bool) -> bool:
        """Add metrics to a checkpoint, or declare it best.

        Returns whether the note changed.
        """
        known = self._notes.get(manifest.id, Note())
        note = Note(known.best or best, {**known.metrics, **metrics})
        if note.over(manifest) == known.over(manifest):
            return False
        self._notes = {**self._notes, manifest.id: note}
        return True

    def to_json(self, committed: Iterable[Manifest]) -> dict[str, Any]:
        """Return the content of :data:`NOTES_FILE`.

        Notes on removed checkpoints are left out.
        """
        there = {manifest.id for manifest in committed}
        newest = max((identity.order for identity in there), default=(0, 0))
        notes = {one: note for one, note in self._notes.items() if one in there or one.order > newest}
        best = _newest_best(notes)
        rows = [
            {"checkpoint": one.name, "best": note.best, "metrics": [*note.metrics.items()]}
            for one, note in notes.items()
        ]
        return {**({"checkpoint": best.name} if best is not None else {}), "notes": rows}


def _newest_best(notes: Mapping[CheckpointId, Note]) -> CheckpointId | None:
    return max((one for one, note in notes.items() if note.best), key=lambda one: one.order, default=None)


def _note_of(row: Mapping[str, Any]) -> Note:
    return Note(row["best"] is True, {str(name): float(value) for name, value in row.get("metrics", ())})
