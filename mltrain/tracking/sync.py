"""Sends what was left behind on this machine: points, files, and checkpoints that are complete in staging.

What a later attempt has overtaken is not sent: points and checkpoints of attempt k beyond the step where attempt k+1
branched off stay here, and that is said.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.spool import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError
from mltrain.tracking.artifacts import discard_staged, open_artifacts
from mltrain.tracking.attempts import STATUS_TAG, Attempt, last_attempt, recorded_attempts
from mltrain.tracking.home import home_of
from mltrain.tracking.journal import Journal
from mltrain.tracking.sender import Sender
from mltrain.tracking.server import RUN_ID, Server, tags_of

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True)
class Synced:
    """What became of what one run had left behind here."""

    run_id: str
    sent: int = 0
    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    left: int = 0
    said: str = ""


def sync(server: Server, *, seconds: float = 600.0) -> Iterator[Synced]:
    """Send what every run has left behind on this machine, for this tracking store."""
    root = home_of(server, "0" * 32).parent
    for home in sorted(folder for folder in root.iterdir() if RUN_ID.fullmatch(folder.name)):
        if (home / "journal.sqlite").is_file():
            try:
                with filelock.FileLock(home / "lock", timeout=0):
                    yield _synced(server, home, seconds)
            except filelock.Timeout:
                yield Synced(home.name, said="it is being trained and sends by itself")
            except MltrainError as error:
                yield Synced(home.name, said=str(error))


def _synced(server: Server, home: Path, seconds: float) -> Synced:
    journal = Journal(home / "journal.sqlite", 10**6)
    try:
        waiting = journal.unsent()
        staging = home / "staging"
        if not waiting and not (staging.is_dir() and Spool(staging).complete()):
            return Synced(home.name)
        run = server.run(home.name)
        artifacts = open_artifacts(run.info.artifact_uri, server.uri)
        ends = _ends(recorded_attempts(artifacts, last_attempt(run.data.params)))
        dropped = sum(journal.drop_beyond(attempt, end) for attempt, end in ends.items())
        uploaded = []
        store = CheckpointStore(home.name, artifacts, Spool(staging))
        newest = max((manifest.id.order for manifest in store.manifests()), default=(0, 0))
        for manifest in store.staged():
            if manifest.step > ends.get(manifest.id.attempt, manifest.step):
                dropped += 1
                discard_staged(staging / manifest.name)
            elif manifest.id.order > newest:
                store.publish(manifest)
                uploaded.append(manifest.name)
        before = journal.unsent()
        drained = Sender(server, home.name, journal, artifacts, lambda: True).drain(seconds)
        left = journal.unsent()
        status = _STATUS.get(tags_of(server.run(home.name)).get(STATUS_TAG, ""))
        if drained and status is not None:
            server.call(server.client.set_terminated, home.name, status)
        return Synced(home.name, before - left, tuple(uploaded), dropped, left)
    finally:
        journal.close()


def _ends(attempts: list[Attempt]) -> dict[int, int]:
    """Return, for every attempt that a later one overtook, the step up to which it counts."""
    ends: dict[int, int] = {}
    for earlier, later in itertools.pairwise(attempts):
        name = later.resumed_from
        branch = CheckpointId.parse(name) if name else None
        same = branch is not None and branch.attempt == earlier.ordinal
        ends[earlier.ordinal] = branch.step if branch is not None and same else 0
    return ends
