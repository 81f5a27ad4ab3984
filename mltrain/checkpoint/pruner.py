"""Retention while a run is trained: removes from its store what the policy does not keep, and records it.

What is found damaged on the way is reported and stays.
"""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line, now
from mltrain.checkpoint.ports import Run
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context, Policy, Removal
from mltrain.checkpoint.store import Survey
from mltrain.errors import DamagedCheckpoint, StorageError, TrackingError
from mltrain.provenance import fingerprint

log = logging.getLogger(__name__)


class Damage:
    """Reports each damaged checkpoint of a run once, in the log and in a tag of the run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._damaged: set[CheckpointId] = set()
        self._cut_short: set[CheckpointId] = set()

    def __bool__(self) -> bool:
        return bool(self._damaged)

    def note(self, identity: CheckpointId, error: DamagedCheckpoint) -> None:
        """Report a damaged checkpoint; a manifest that was cut short before its commit is no damage."""
        if identity in self._damaged or identity in self._cut_short:
            return
        if error.torn and not self._was_announced(identity):
            self._cut_short.add(identity)
            log.warning(
                "Checkpoint %s was never committed: the writing of its manifest was interrupted.", identity.name
            )
            return
        log.warning("Checkpoint %s is damaged and left aside: %s", identity.name, error)
        self._damaged.add(identity)
        self._run.report_damaged(identity.name, str(error))

    def pins(self) -> dict[CheckpointId, str]:
        """Return the damaged checkpoints, pinned: their weights may be intact, and a person may want to look."""
        return dict.fromkeys(self._damaged, "found damaged by the present attempt")

    def _was_announced(self, identity: CheckpointId) -> bool:
        """Whether the run announced the commit of a checkpoint or of a later one."""
        newest = CheckpointId.parse(self._run.announced or "")
        return newest is not None and identity.order <= newest.order


class Pruner:
    """Prunes one run, whose holder it belongs to.

    Args:
        run: that the checkpoints belong to.
        reader: of its checkpoints.
        policy: decides which of them stay.
        damage: what this attempt has found damaged stays.
    """

    def __init__(self, run: Run, reader: CheckpointReader, policy: Policy, damage: Damage) -> None:
        self._run = run
        self._reader = reader
        self._store = reader.store
        self._policy = policy
        self._damage = damage
        self._refused = False
        self._stuck: set[CheckpointId] = set()

    def prune(self, survey: Survey, newest: Manifest | None, resumed_from: CheckpointId | None = None) -> list[Removal]:
        """Remove what the policy does not keep, and what dead processes left half uploaded or half removed.

        Args:
            survey: of the store, made while the run was held.
            newest: the newest commit of this attempt, if it has one.
            resumed_from: the checkpoint that this attempt continues from, until it has a commit of its own.
        """
        survey = replace(survey, manifests=tuple(self._reader.notes.over(survey.manifests)))
        context = self.context()
        keep = retention.protected(survey.manifests, context, resumed_from=resumed_from, in_use=())
        plan = retention.plan(survey.manifests, self._policy, context, keep)
        unfinished = self._unfinished(survey, keep, newest)
        if not plan and not unfinished:
            return []
        if plan and not self._have_successors(survey, context):
            return []
        used = self._run.in_use()  # asked only now: it takes requests of its own
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
        """Return what policies may ask: the time, pins, what best means."""
        pins = {one: why for name, why in self._run.pins().items() if (one := CheckpointId.parse(name))}
        return replace(self._reader.notes.context, pins={**self._damage.pins(), **pins})

    def _have_successors(self, survey: Survey, context: Context) -> bool:
        """Look in the store for the newest and the best, without which nothing may go: the survey may be from memory."""
        line = current_line(survey.manifests)
        best = retention.best_of(line, context)
        for identity in {line[-1].id, *([best.id] if best is not None else [])}:
            try:
                there = self._store.manifest(identity) is not None
            except DamagedCheckpoint as error:
                log.warning("%s", error)
                there = False
            if not there:
                log.warning("%s is not in the store any more as it was committed, so nothing is removed.", identity)
                return False
        return True

    def _removed(self, removal: Removal) -> bool:
        try:
            self._run.remove_models(removal.manifest.name)
            self._store.remove(removal.manifest.id)
        except (StorageError, TrackingError) as error:
            if not self._refused:
                log.warning("Old checkpoints stay, because the store does not let them be removed: %s", error)
            self._refused = True
            return False
        log.info("Removed %s (%s): %s", removal.manifest.title, removal.manifest.name, removal.rule)
        return True

    def _unfinished(
        self, survey: Survey, keep: Collection[CheckpointId], newest: Manifest | None
    ) -> list[CheckpointId]:
        """Return folders without a manifest that will never have one.

        Commits of a run are in order and this attempt holds it, so nobody completes what is older than its newest
        commit: it is what a process left that died while it uploaded or removed.
        """
        if newest is None:
            return []
        return [
            identity
            for identity in survey.uncommitted
            if identity.order < newest.id.order and identity not in keep and identity not in self._stuck
        ]

    def _finish_removal(self, identity: CheckpointId) -> None:
        try:
            self._store.remove(identity)
        except StorageError as error:
            self._stuck.add(identity)
            log.warning("%s, which has no manifest, was left by an interrupted process and stays: %s", identity, error)
            return
        log.info("Removed %s, which has no manifest: an interrupted process left it", identity)


def record_of(removal: Removal) -> dict[str, Any]:
    """Return a line of the record of removals."""
    return {
        "time": now().isoformat(timespec="seconds"),
        "checkpoint": removal.manifest.name,
        "rule": removal.rule,
        "bytes": removal.manifest.size,
        "host": fingerprint.host(),
    }
