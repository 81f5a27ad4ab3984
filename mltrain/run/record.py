"""Records of a run: configuration, parameters, attempts, data, small files, and removed checkpoints.

``retention.jsonl`` has the latest removals. At :data:`MOST_LINES` lines it is moved into the folder ``retention`` and a new
one begins, so that a removal costs the same however many came before.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mltrain.delivery.creation import RunIdentity
from mltrain.delivery.outbox import Outbox
from mltrain.errors import StorageError
from mltrain.ownership.attempts import ATTEMPTS_FILE, CONFIG_FILE
from mltrain.ownership.lease import Hold
from mltrain.provenance import fingerprint
from mltrain.redaction import redacted, redacted_tree
from mltrain.store.artifacts import Artifacts
from mltrain.store.durable import replace_file
from mltrain.store.retry import is_transient
from mltrain.tracking import names
from mltrain.tracking.names import LONGEST_PARAMETER, Names
from mltrain.tracking.tags import CHANGED_PREFIX, PROJECT_TAG

REMOVALS_FILE = "retention.jsonl"
REMOVALS_FOLDER = "retention"
MOST_LINES = 50

_LONGEST_DIGEST = 36
"""Most characters of a dataset's digest that MLflow accepts."""


class Record:
    """Writes configuration, parameters, attempts and data of a run.

    Args:
        run: the run.
        hold: with its attempts.
        outbox: for parameters, tags and files.
    """

    def __init__(self, run: RunIdentity, hold: Hold, outbox: Outbox) -> None:
        self._run = run
        self._hold = hold
        self._outbox = outbox

    def start(
        self, config: Mapping[str, Any], parameters: Mapping[str, str], project: str, held: Mapping[str, str]
    ) -> None:
        """Record configuration, parameters and project, once, before the first step.

        Args:
            config: written as an artifact.
            parameters: name to text.
            project: of the run.
            held: parameters that the run already has: an adopted run has its launcher's, quoted.

        Raises:
            StorageError: the artifact store fails.
        """
        self.write_json(CONFIG_FILE, {"schema": 1, "project": project, "config": config})
        self.parameters(parameters, held)
        self._outbox.set_tag(PROJECT_TAG, project)

    def parameters(self, parameters: Mapping[str, str], held: Mapping[str, str]) -> None:
        """Record parameters except those that the run already has, which MLflow never changes."""
        for key, value in Names("parameter", names.key).translated(parameters).items():
            if key not in held:
                self._outbox.journal.log_item("param", key, redacted(value)[:LONGEST_PARAMETER])

    def attempt(self) -> None:
        """Write the list of attempts, and the changes of the current one."""
        self.write_json(ATTEMPTS_FILE, self._attempts())
        attempt = self._hold.attempt
        if attempt.changed:
            changes = {key: list(change) for key, change in attempt.changed.items()}
            self._outbox.set_tag(f"{CHANGED_PREFIX}{attempt.ordinal}", json.dumps(redacted_tree(changes)))
        if attempt.code.get("commit"):
            self._outbox.set_tag("mlflow.source.git.commit", attempt.code["commit"])

    def data(self, places: Mapping[str, Path], samples: Mapping[str, Path | str]) -> None:
        """Record paths and fingerprints of the data as datasets, which the UI shows and compares.

        Args:
            places: paths of the data in the configuration, whose fingerprints the attempt has.
            samples: further data: a file or folder, or a text that describes how they are generated.
        """
        digests = self._hold.attempt.data
        found: list[tuple[str, str, Path | str]]
        found = [(name, digests[name], place) for name, place in places.items() if name in digests]
        found += [(name, _digest(place), place) for name, place in samples.items()]
        inputs = [
            {
                "name": name,
                "digest": digest[:_LONGEST_DIGEST],
                "place": redacted(str(place)),
                "context": "evaluation" if name.startswith(("val", "test")) else "training",
                "type": "local" if isinstance(place, Path) else "code",
            }
            for name, digest, place in found
        ]
        if inputs:
            self._outbox.journal.log_item("inputs", "datasets", json.dumps(inputs))

    def write_json(self, name: str, content: Any) -> None:
        """Upload a small JSON file now, or once the artifact store can be reached.

        Raises:
            StorageError: the artifact store refuses permanently, or this disk fails.
        """
        file, artifacts = self._written(name, content), self._run.artifacts
        if self._run.known and (artifacts.local_root is not None or self._outbox.sender.trouble is None):
            try:
                artifacts.upload(file)
                return
            except StorageError as error:
                if artifacts.local_root is not None or not is_transient(error.__cause__ or error):
                    raise
        self._outbox.log_file(file)

    def queue_attempts(self) -> None:
        """Write the list of attempts on this disk; the sender uploads it.

        Raises:
            StorageError: this disk fails.
        """
        self._outbox.log_file(self._written(ATTEMPTS_FILE, self._attempts()))

    def _attempts(self) -> dict[str, Any]:
        return {"schema": 1, "attempts": [asdict(attempt) for attempt in self._hold.attempts]}

    def _written(self, name: str, content: Any) -> Path:
        file = self._run.home / name
        replace_file(file, json.dumps(redacted_tree(content), indent=1, default=str).encode())
        return file


def _digest(sample: Path | str) -> str:
    """Return the digest of sample data, of its files or its description."""
    if isinstance(sample, Path):
        return fingerprint.data({"": sample})[""]
    return hashlib.sha256(sample.encode()).hexdigest()


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
        return f"{self._count} checkpoints, {self._bytes} bytes"

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
