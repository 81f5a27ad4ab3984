"""Retention during training: removes checkpoints that the policy drops.

Removals are recorded. Damaged checkpoints are reported and stay.

``retention.jsonl`` has the latest removals. At :data:`MOST_LINES` lines it is moved into the folder ``retention`` and a new
one begins, so that a removal costs the same however many came before.
"""

import json
import logging
import secrets
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line, now
from mltrain.checkpoint.ports import Run
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context, Policy, Removal
from mltrain.errors import DamagedCheckpoint, StorageError, TrackingError, counted
from mltrain.provenance import fingerprint
from mltrain.store.artifacts import Artifacts

log = logging.getLogger(__name__)

REMOVALS_FILE = "retention.jsonl"
REMOVALS_FOLDER = "retention"
MOST_LINES = 50


class Damage:
    """Reports each damaged checkpoint of a run once.

    The report goes to the log and to a tag of the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._damaged: set[CheckpointId] = set()
        self._torn: set[CheckpointId] = set()

    def __bool__(self) -> bool:
        return bool(self._damaged)

    def note(self, identity: CheckpointId, error: DamagedCheckpoint) -> None:
        """Report a damaged checkpoint.

        A manifest that was torn before its commit is not damage.
        """
        if identity in self._damaged or identity in self._torn:
            return
        if error.torn and not self._was_announced(identity):
            self._torn.add(identity)
            log.warning("Checkpoint %s was never committed: the write of its manifest was interrupted.", identity.name)
            return
        log.warning("Checkpoint %s is damaged and is skipped: %s", identity.name, error)
        self._damaged.add(identity)
        self._run.report_damaged(identity.name, str(error))

    def pins(self) -> dict[CheckpointId, str]:
        """Return the damaged checkpoints as pinned.

        Their weights may be intact, and a user may want to inspect them.
        """
        return dict.fromkeys(self._damaged, "found damaged by the present attempt")

    def _was_announced(self, identity: CheckpointId) -> bool:
        """Whether this checkpoint or a later one was announced."""
        newest = CheckpointId.parse(self._run.announced or "")
        return newest is not None and identity.order <= newest.order


class Pruner:
    """Prunes the checkpoints of a run that this process holds.

    Args:
        run: owns the checkpoints.
        reader: of its checkpoints.
        policy: decides which of them stay.
        damage: the damaged checkpoints that this attempt has found; they stay.
    """

    def __init__(self, run: Run, reader: CheckpointReader, policy: Policy, damage: Damage) -> None:
        self._run = run
        self._reader = reader
        self._store = reader.store
        self._policy = policy
        self._damage = damage
        self._refused = False
        self._not_removable: set[CheckpointId] = set()

    def prune(
        self,
        committed: Sequence[Manifest],
        uncommitted: Sequence[CheckpointId],
        newest: Manifest | None,
        resumed_from: CheckpointId | None = None,
    ) -> list[Removal]:
        """Remove checkpoints that the policy does not keep.

        Also removes incomplete uploads and removals of dead processes.

        Args:
            committed: all checkpoints of the store with the notes applied, listed while the run was held.
            uncommitted: folders of the store without a manifest, listed with them.
            newest: the newest commit of this attempt, if it has one.
            resumed_from: the checkpoint that this attempt continues from, until it has a commit of its own.
        """
        context = self.context()
        keep = retention.protected(committed, context, resumed_from=resumed_from, in_use=())
        plan = retention.plan(committed, self._policy, context, keep)
        unfinished = self._unfinished(uncommitted, keep, newest)
        if not plan and not unfinished:
            return []
        if plan and not self._have_successors(committed, context):
            return []
        used = self._run.in_use()  # queried last, because it costs requests
        for identity in unfinished:
            if identity.name not in used:
                self._finish_removal(identity)
        removed: list[Removal] = []
        for removal in plan:
            if removal.manifest.name in used:
                continue
            if not self._run.holds(certainly=True) or not self._removed(removal):
                break
            removed.append(removal)
        if removed and self._run.holds(certainly=True):
            self._run.record_removals([record_of(removal) for removal in removed])
        return removed

    def context(self) -> Context:
        """Return the context of policies: time, pins and declared best."""
        pins = {one: why for name, why in self._run.pins().items() if (one := CheckpointId.parse(name))}
        return replace(self._reader.notes.context, pins={**self._damage.pins(), **pins})

    def _have_successors(self, committed: Sequence[Manifest], context: Context) -> bool:
        """Whether the store still has the newest and the best.

        Nothing may be removed without them, and the list may come from memory.
        """
        line = current_line(committed)
        best = retention.best_of(line, context)
        for identity in {line[-1].id, *([best.id] if best is not None else [])}:
            try:
                found = self._store.manifest(identity) is not None
            except DamagedCheckpoint as error:
                log.warning("%s", error)
                found = False
            if not found:
                log.warning("%s is missing or changed in the store, so no checkpoint is removed.", identity)
                return False
        return True

    def _removed(self, removal: Removal) -> bool:
        try:
            self._run.remove_models(removal.manifest.name)
            self._store.remove(removal.manifest.id)
        except (StorageError, TrackingError) as error:
            if not self._refused:
                log.warning("Older checkpoints stay, because the store refuses to remove them: %s", error)
            self._refused = True
            return False
        log.info("Removed %s (%s): %s", removal.manifest.title, removal.manifest.name, removal.rule)
        return True

    def _unfinished(
        self, uncommitted: Sequence[CheckpointId], keep: Collection[CheckpointId], newest: Manifest | None
    ) -> list[CheckpointId]:
        """Return folders that will never get a manifest.

        Commits of a run are in order and this attempt holds its lease, so no process completes a folder that is older than the
        newest commit: it is left from an interrupted upload or removal.
        """
        if newest is None:
            return []
        return [
            identity
            for identity in uncommitted
            if identity.order < newest.id.order and identity not in keep and identity not in self._not_removable
        ]

    def _finish_removal(self, identity: CheckpointId) -> None:
        try:
            self._store.remove(identity)
        except StorageError as error:
            self._not_removable.add(identity)
            log.warning(
                "%s, an incomplete checkpoint of an interrupted process, could not be removed: %s", identity, error
            )
            return
        log.info("Removed %s, an incomplete checkpoint of an interrupted process", identity)


def record_of(removal: Removal) -> dict[str, Any]:
    """Return a removal as a line for the run's record."""
    return {
        "time": now().isoformat(timespec="seconds"),
        "checkpoint": removal.manifest.name,
        "rule": removal.rule,
        "bytes": removal.manifest.size,
        "host": fingerprint.host(),
    }


class Removals:
    """The record of removed checkpoints of one run.

    Args:
        artifacts: of the run.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._lines: list[str] | None = None
        self._count = self._bytes = 0

    def append(self, records: Sequence[Mapping[str, Any]]) -> str:
        """Append lines, and return the tag with the totals.

        Raises:
            StorageError: the artifact store fails, or the existing record cannot be read.
            DamagedCheckpoint: the existing record is larger than mltrain writes it.
        """
        if self._lines is None:
            self._lines = _lines_of(self._artifacts, REMOVALS_FILE)
            everything = recorded_removals(self._artifacts, self._lines)
            self._count, self._bytes = len(everything), sum(map(_size, everything))
        if len(self._lines) >= MOST_LINES:
            self._upload(
                f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.jsonl", self._lines, REMOVALS_FOLDER
            )
            self._lines = []
        lines = [*self._lines, *map(json.dumps, records)]
        self._upload(REMOVALS_FILE, lines)
        self._lines = lines
        self._count, self._bytes = self._count + len(records), self._bytes + sum(int(r["bytes"]) for r in records)
        return f"{counted(self._count, 'checkpoint')}, {self._bytes / 1e6:.1f} MB"

    def _upload(self, name: str, lines: Sequence[str], folder: str = "") -> None:
        with tempfile.TemporaryDirectory(prefix="mltrain-") as temporary:
            file = Path(temporary) / name
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            self._artifacts.upload(file, folder)


def recorded_removals(artifacts: Artifacts, latest: Sequence[str]) -> list[str]:
    """Return all lines of the record, oldest first.

    Args:
        artifacts: of the run.
        latest: the lines of ``retention.jsonl``. If empty, there is no folder ``retention`` either.

    Raises:
        StorageError: the artifact store fails.
        DamagedCheckpoint: a file is larger than mltrain writes it.
    """
    older = sorted(entry.name for entry in artifacts.entries(REMOVALS_FOLDER) if not entry.is_dir) if latest else []
    lines = [line for name in older for line in _lines_of(artifacts, f"{REMOVALS_FOLDER}/{name}")]
    return list(dict.fromkeys([*lines, *latest]))  # a process killed during the move leaves lines in both files


def _lines_of(artifacts: Artifacts, path: str) -> list[str]:
    try:
        return artifacts.read(path, 2**28).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []  # other errors are raised: an unreadable record must not be replaced by a shorter one


def _size(line: str) -> int:
    try:
        return int(json.loads(line)["bytes"])
    except (ValueError, KeyError, TypeError):
        return 0
