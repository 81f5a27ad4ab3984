"""Sends the backlog of this machine: points, files, and complete staged checkpoints.

Runs that could not be created before are created. Points and checkpoints of attempt k beyond the step where attempt k+1
branched off are not sent, and counted as dropped.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from mltrain.checkpoint.manifest import CheckpointId, now
from mltrain.checkpoint.reader import CheckpointReader, matching
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.store import CheckpointStore
from mltrain.delivery.backlog import newest_staged, publish_backlog
from mltrain.delivery.creation import RunCreation, recorded_spec
from mltrain.delivery.journal import Journal
from mltrain.delivery.sender import Sender
from mltrain.errors import MltrainError, RunNotFound, StorageError, counted
from mltrain.ownership.attempts import STATUS_OF, Attempt, conclude, forget_only_local, last_attempt, recorded_attempts
from mltrain.ownership.host_lock import lock_file
from mltrain.ownership.run_folder import address_of, may_be, stores
from mltrain.redaction import redacted_uri
from mltrain.store.artifacts import Artifacts
from mltrain.store.names import UNSETTLED
from mltrain.store.removal import discard_unsettled
from mltrain.tracking.client import RUN_ID, TrackingClient
from mltrain.tracking.run_artifacts import COMMITTED, artifacts_of
from mltrain.tracking.tags import (
    ENDED_PREFIX,
    LATEST_TAG,
    ONLY_LOCAL_TAG,
    STATUS_TAG,
    WHEN_SENT_TAG,
    best_tags,
    meaning_of_best,
)

log = logging.getLogger(__name__)

_LOCKED = (
    "another mltrain process holds the run's folder: a training, which sends its backlog by itself, or mltrain sync"
)


@dataclass(frozen=True)
class Synced:
    """The result of sending the backlog of one run.

    Attributes:
        run_id: of the run; its provisional id if it has not been created.
        sent: number of sent records.
        uploaded: names of uploaded checkpoints.
        dropped: number of points, pictures and checkpoints that a later attempt replaces.
        left: number of records still to be sent.
        refused: number of records that the server refuses permanently.
        said: why something was not sent, or what is wrong with the run's folder on this host.
        failed: whether sending failed.
        address: of the tracking store that the backlog is for, if that is not the server in use.
    """

    run_id: str
    sent: int = 0
    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    left: int = 0
    refused: int = 0
    said: str = ""
    failed: bool = False
    address: str = ""


@dataclass(frozen=True)
class Existing:
    """A run that exists, as the destination of a sender."""

    id: str
    artifacts: Artifacts

    def created(self) -> str:
        """Return the run's id."""
        return self.id


class HostLock:
    """The lock on this host that fences a running sender."""

    gone: str | None = None

    def keep(self) -> bool:
        """Return whether this process holds the run."""
        return True


def sync(server: TrackingClient, *, seconds: float = 600.0, address: str | None = None) -> Iterator[Synced]:
    """Send the backlog of every run on this machine.

    The backlog for another address is sent to this server if the server has its run. Otherwise, and if the run was never
    created, it is only listed with that address.

    Args:
        server: tracking server that gets the backlog.
        seconds: timeout for one run.
        address: another address of this server's store. Its backlog is sent to this server, also of runs never created.
    """
    also = redacted_uri(address_of(address)) if address is not None else None
    for root, there in stores(server):
        ours = there is None or there == also or (address is not None and root.name == address)
        for home in sorted(folder for folder in root.iterdir() if RUN_ID.fullmatch(folder.name)):
            yield from _sync_folder(server, home, seconds, None if ours else there)


def _sync_folder(server: TrackingClient, home: Path, seconds: float, address: str | None) -> Iterator[Synced]:
    """Send the backlog of one folder, and report its errors."""
    try:
        if not home.is_dir():
            return
        with lock_file(home / "lock").acquire(timeout=0):
            for file in sorted(home.glob("journal*.sqlite")) or [home / "journal.sqlite"]:
                synced = _sync_journal(server, home, file, seconds, address)
                if address is None or synced != Synced(synced.run_id):  # not an empty one
                    yield synced
    except filelock.Timeout:
        yield Synced(home.name, said=_LOCKED)
    except (MltrainError, OSError) as error:
        yield Synced(home.name, said=str(error), failed=True)
    except Exception as error:
        log.exception("The backlog in %s could not be sent", home)
        yield Synced(home.name, said=f"{type(error).__name__}: {error}", failed=True)


def _sync_journal(server: TrackingClient, home: Path, file: Path, seconds: float, address: str | None) -> Synced:
    journal = Journal(file, 10**6)
    try:
        harm = f"its journal was damaged and renamed to {journal.damaged}" if journal.damaged is not None else ""
        spec = recorded_spec(home)
        journal.unpark()
        run_id = home.name if spec is None or spec.run_id is None else spec.run_id
        before, staged = journal.unsent(), newest_staged(home)
        if not before and staged is None and not (home / UNSETTLED).exists():
            return Synced(run_id, said=harm, failed=bool(harm))
        uncreated = spec is not None and spec.run_id is None
        if address is not None and (uncreated or not _is_at(server, run_id, address)):
            # The newest checkpoint stays staged after its upload, so it may or may not be part of the backlog.
            said = f"waits for {address}" if before or uncreated else f"has a staged checkpoint that {address} may lack"
            return Synced(run_id, left=before, said=said, address=address)
        try:
            if uncreated and spec is not None:
                run_id = str(RunCreation(server, spec, tried=True).recorded(home).run_id)
            synced = _send(server, run_id, home, journal, seconds)
        except RunNotFound as error:
            synced = _without_run(server, run_id, home, journal, error)
        except (MltrainError, OSError) as error:
            synced = Synced(run_id, left=journal.unsent(), said=str(error), failed=True)
        return replace(synced, said="; ".join(filter(None, (harm, synced.said))), failed=synced.failed or bool(harm))
    finally:
        journal.close()


def _send(server: TrackingClient, run_id: str, home: Path, journal: Journal, seconds: float) -> Synced:
    """Send records and checkpoints, then set tags and status."""
    run = server.run(run_id)
    artifacts = artifacts_of(server, run, signs=COMMITTED)
    last = last_attempt(run.data.params)
    recorded = recorded_attempts(artifacts, last) if last > 1 else [Attempt(1)]  # points need no artifact store
    attempts = [one for one in recorded if not one.withdrawn]
    attempt = attempts[-1].ordinal if attempts else 0
    ends = _ends(attempts)
    dropped = journal.drop_beyond(ends)
    if before := journal.unsent():
        with suppress(OSError):  # the disk is full, which must not keep the records here
            (home / UNSETTLED).touch()
    # The records first: a checkpoint cannot be used without the run's configuration, which is among them.
    drained = Sender(server, Existing(run_id, artifacts), journal, HostLock()).drain(seconds)
    found = publish_backlog(run_id, home, artifacts, ends)
    failure: Exception | None = found.failure
    try:
        if newest_staged(home) is not None and failure is None:  # perhaps uploaded by a process that was killed then
            _announce(server, run_id, artifacts)
        if drained:
            _settle(server, run_id, artifacts, attempt)
            discard_unsettled(home)
    except (MltrainError, OSError) as error:
        failure = failure or error
    left, refused = journal.unsent(), journal.parked()
    said = found.waiting if failure is None else str(failure)
    dropped += found.dropped
    return Synced(run_id, before - left - refused, found.uploaded, dropped, left, refused, said, failure is not None)


def _without_run(server: TrackingClient, run_id: str, home: Path, journal: Journal, error: RunNotFound) -> Synced:
    """Return what waits here for a deleted or missing run."""
    tags: Mapping[str, str] | None = None
    with suppress(RunNotFound):
        tags = server.get_run(run_id).data.tags
    left, staged, announced = (
        journal.unsent(),
        newest_staged(home),
        CheckpointId.parse((tags or {}).get(LATEST_TAG, "")),
    )
    if staged is not None and announced is not None and announced.order >= staged.order:
        staged = None  # the store has it
    waiting = [counted(left, "record")] if left else []
    waiting += [staged.name] if staged is not None else []
    if not waiting:
        return Synced(run_id)
    # Of a run that is gone with its tags, the newest checkpoint may or may not have been uploaded.
    failed = bool(left) or tags is not None
    return Synced(run_id, left=left, said=f"{' and '.join(waiting)} in {home} cannot be sent. {error}", failed=failed)


def _is_at(server: TrackingClient, run_id: str, address: str) -> bool:
    """Whether this server is the one that an address names.

    Run ids are unique, so then both addresses are of one store.
    """
    if not may_be(server, address):
        return False
    try:
        server.run(run_id)
    except RunNotFound:
        return False
    return True


def _announce(server: TrackingClient, run_id: str, artifacts: Artifacts) -> None:
    """Record newest and best checkpoint, as commits do in training."""
    run = server.run(run_id)  # before the checkpoints: another machine may commit and announce a newer one meanwhile
    reader = CheckpointReader(CheckpointStore(run_id, artifacts), Context(now(), {}, *meaning_of_best(run)))
    committed, context = reader.all(), reader.notes.context
    tags: dict[str, str] = {}
    for found in matching(committed, "best", context)[:1]:
        tags |= best_tags(found)
    for found in matching(committed, "latest", context)[:1]:
        tags[LATEST_TAG] = found.name
    if any(run.data.tags.get(key) != value for key, value in tags.items()):
        server.set_tags(run_id, tags)


def _settle(server: TrackingClient, run_id: str, artifacts: Artifacts, attempt: int) -> None:
    """Set MLflow's status to that of the run's tags.

    A run is FINISHED only if its newest checkpoint is uploaded.
    """
    run = server.run(run_id)
    tags, last = run.data.tags, last_attempt(run.data.params)  # the last may be withdrawn, and later than ``attempt``
    outcome = tags.get(STATUS_TAG, "")
    newest = CheckpointId.parse(tags.get(ONLY_LOCAL_TAG, "").partition(" ")[0])
    stored = False
    if newest is not None and newest.attempt == attempt:
        with suppress(StorageError):  # reported by the upload; the run has ended all the same
            stored = CheckpointStore(run_id, artifacts).manifest(newest) is not None
    if stored:
        if outcome in STATUS_OF and WHEN_SENT_TAG in tags:
            outcome = tags[WHEN_SENT_TAG]
            server.set_tag(run_id, f"{ENDED_PREFIX}{last}", outcome)
        forget_only_local(server, run_id, tags)
    if outcome in STATUS_OF:
        conclude(server, run_id, last, outcome)


def _ends(attempts: list[Attempt]) -> dict[int, int]:
    """Return the last step of each attempt but the last.

    It is the step at which the next recorded attempt branched off. If that one continues an attempt without a record in
    between, the end is unknown and left out.
    """
    ends: dict[int, int] = {}
    for number, earlier in enumerate(attempts):
        later = next((one for one in attempts[number + 1 :] if one.started), None)
        if later is None:
            continue
        branch = CheckpointId.parse(later.resumed_from or "")
        if branch is None or branch.attempt < earlier.ordinal:
            ends[earlier.ordinal] = 0
        elif branch.attempt == earlier.ordinal:
            ends[earlier.ordinal] = branch.step
    return ends
