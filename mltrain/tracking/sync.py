"""Sends what was left behind on this machine: points, files, and checkpoints that are complete in staging.

A run that could not be created is created. What a later attempt has overtaken is not sent: points and checkpoints of
attempt k beyond the step where attempt k+1 branched off stay here, and that is said.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.errors import MltrainError
from mltrain.tracking.artifacts import open_artifacts
from mltrain.tracking.attempts import STATUS_OF, STATUS_TAG, Attempt, last_attempt, recorded_attempts
from mltrain.tracking.birth import Birth, Registration, recorded_birth
from mltrain.tracking.home import homes, remember_home
from mltrain.tracking.journal import Journal
from mltrain.tracking.left import has_left, publish_left
from mltrain.tracking.sender import Sender
from mltrain.tracking.server import RUN_ID, Server, tags_of


@dataclass(frozen=True)
class Synced:
    """What became of what one run had left behind here."""

    run_id: str
    sent: int = 0
    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    left: int = 0
    refused: int = 0
    said: str = ""


def sync(server: Server, *, seconds: float = 600.0) -> Iterator[Synced]:
    """Send what every run has left behind on this machine, for this tracking store."""
    root = homes(server)
    if not root.is_dir():
        return
    for home in sorted(folder for folder in root.iterdir() if RUN_ID.fullmatch(folder.name)):
        for journal in sorted(home.glob("journal*.sqlite")):
            try:
                with filelock.FileLock(home / "lock", timeout=0):
                    yield _synced(server, home, journal, seconds)
            except filelock.Timeout:
                yield Synced(home.name, said="it is being trained and sends by itself")
            except MltrainError as error:
                yield Synced(home.name, said=str(error))


def _synced(server: Server, home: Path, file: Path, seconds: float) -> Synced:
    journal = Journal(file, 10**6)
    try:
        birth = recorded_birth(home)
        journal.unpark()
        run_id = home.name if birth is None or birth.run_id is None else birth.run_id
        if not journal.unsent() and not has_left(home):
            return Synced(run_id)
        if birth is not None and birth.run_id is None:
            run_id = _created(server, birth, home)
        run = server.run(run_id)
        artifacts = open_artifacts(run.info.artifact_uri, server.uri)
        ends = _ends(recorded_attempts(artifacts, last_attempt(run.data.params)))
        dropped = journal.drop_beyond(ends)
        # The records first: they name the run's configuration, without which its checkpoints are of no use.
        before = journal.unsent()
        drained = Sender(server, lambda: run_id, journal, artifacts, lambda: True).drain(seconds)
        left = publish_left(run_id, home, artifacts, ends)
        status = STATUS_OF.get(tags_of(server.run(run_id)).get(STATUS_TAG, ""))
        if drained and status is not None:
            server.insist(server.client.set_terminated, run_id, status)
        waiting, refused = journal.unsent(), journal.parked()
        sent = before - waiting - refused
        return Synced(run_id, sent, left.uploaded, dropped + left.dropped, waiting, refused)
    finally:
        journal.close()


def _created(server: Server, birth: Birth, home: Path) -> str:
    registration = Registration(server, birth, tried=True)
    run_id = str(registration.info().run_id)
    registration.discard_doubles()
    remember_home(server, run_id, home)
    replace(birth, run_id=run_id).save(home)
    return run_id


def _ends(attempts: list[Attempt]) -> dict[int, int]:
    """Return, for every attempt that a later one overtook, the step up to which it counts."""
    ends: dict[int, int] = {}
    for earlier, later in itertools.pairwise(attempts):
        name = later.resumed_from
        branch = CheckpointId.parse(name) if name else None
        same = branch is not None and branch.attempt == earlier.ordinal
        ends[earlier.ordinal] = branch.step if branch is not None and same else 0
    return ends
