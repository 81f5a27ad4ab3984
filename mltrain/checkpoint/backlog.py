"""Checkpoints that are complete on this disk and not in the artifact store yet."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line
from mltrain.checkpoint.policies import Budget
from mltrain.checkpoint.ports import Run
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Policy

log = logging.getLogger(__name__)


class Backlog:
    """What one process has staged and still has to upload.

    Args:
        run: that the checkpoints belong to.
        reader: of the run's checkpoints.
        policy: decides which of them are worth keeping.
        gigabytes: how much may be staged, in units of 10**9 bytes.
    """

    def __init__(self, run: Run, reader: CheckpointReader, policy: Policy, gigabytes: float) -> None:
        self._run = run
        self._reader = reader
        self._policy = policy
        self._budget = Budget(gigabytes=gigabytes, of=policy)
        self._lock = threading.Lock()
        self._waiting: dict[CheckpointId, Manifest] = {}
        self._uploading: CheckpointId | None = None
        self._committed = (0, 0)

    @property
    def newest(self) -> Manifest | None:
        """The newest checkpoint that waits, if any does."""
        with self._lock:
            return max(self._waiting.values(), key=lambda manifest: manifest.id.order, default=None)

    def add(self, manifest: Manifest) -> None:
        """Add a checkpoint that is complete on this disk."""
        with self._lock:
            self._waiting[manifest.id] = manifest

    @contextmanager
    def uploading(self, manifest: Manifest) -> Iterator[bool]:
        """Protect a checkpoint from :meth:`trim` while it is uploaded; yields whether it still waits."""
        with self._lock:
            waits = manifest.id in self._waiting
            self._uploading = manifest.id if waits else None
        try:
            yield waits
        finally:
            self._uploading = None

    def committed(self, manifest: Manifest) -> None:
        """Take a checkpoint that the store has off the backlog, and the older ones, which it supersedes."""
        with self._lock:
            self._waiting = {one: m for one, m in self._waiting.items() if one.order > manifest.id.order}
            self._committed = manifest.id.order

    def worth_uploading_before(self, manifest: Manifest) -> list[Manifest]:
        """Return the staged checkpoints that have to be uploaded before a newer one, oldest first.

        These are what the policy would keep of them, and the best: an outage or a kill must not cost it. What is older than
        a commit is never uploaded.
        """
        waiting = [one for one in self._reader.store.staged() if self._committed < one.id.order < manifest.id.order]
        if not waiting:
            return []
        committed = self._reader.store.survey(remembered=True).manifests
        newest = max((one.id.order for one in committed), default=(0, 0))
        waiting = sorted((one for one in waiting if one.id.order > newest), key=lambda one: one.id.order)
        if not waiting:
            return []
        line, context = current_line(self._reader.noted([*committed, *waiting, manifest])), self._reader.context
        best = retention.best_of(line, context)
        wanted = self._policy.keep(line, context) | ({best.id} if best is not None else set())
        return [one for one in waiting if one.id in wanted]

    def trim(self, newest: Manifest) -> None:
        """Remove the least valuable staged checkpoints where all of them exceed the budget.

        The newest stays, and so does the checkpoint that the attempt continues from.
        """
        staged = self._reader.store.staged()
        if sum(manifest.size for manifest in staged) <= self._budget.gigabytes * 1e9:
            return
        keep = {newest.id, *newest.ancestry[-1:]}
        # The context without pins: a server that does not answer is why staging is full.
        for removal in retention.plan(self._reader.noted(staged), self._budget, self._reader.context, keep):
            manifest = removal.manifest
            with self._lock:
                if manifest.id == self._uploading:
                    continue
                self._waiting.pop(manifest.id, None)
            self._run.report_dropped(manifest.name, removal.rule)
            self._reader.store.discard_staged(manifest.id)
            log.warning(
                "Staging is full: %s (%s) was removed from this disk before it could be uploaded: %s.",
                manifest.title,
                manifest.name,
                removal.rule,
            )
