"""Records of a run: configuration, parameters, attempts, data and small files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mltrain.delivery.creation import RunIdentity
from mltrain.delivery.outbox import Outbox
from mltrain.errors import StorageError
from mltrain.ownership.attempts import ATTEMPTS_FILE, CONFIG_FILE
from mltrain.ownership.lease import Hold
from mltrain.provenance import fingerprint
from mltrain.redaction import redacted, redacted_tree
from mltrain.store.durable import replace_file
from mltrain.store.retry import is_transient
from mltrain.tracking import names
from mltrain.tracking.names import LONGEST_PARAMETER, Names
from mltrain.tracking.tags import CHANGED_PREFIX, PROJECT_TAG

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
        self.begun = False
        """Whether attempts.json has this attempt: it trains, so it replaces earlier ones."""

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
        """Record parameters except existing ones, which MLflow never changes."""
        for key, value in Names("parameter", names.key).translated(parameters).items():
            if key not in held:
                self._outbox.journal.log_item("param", key, redacted(value)[:LONGEST_PARAMETER])

    def attempt(self, *, wait: bool = True) -> None:
        """Write all attempts, and the current one's changes.

        The current one replaces what earlier ones did beyond its origin.

        Args:
            wait: whether to upload the file now, unless there is an outage.

        Raises:
            StorageError: the artifact store refuses permanently, or this disk fails.
        """
        self.begun = True  # even if the disk fails now: the end of the attempt is recorded again
        if wait:
            self.write_json(ATTEMPTS_FILE, self._attempts())
        else:
            self.queue_attempts()
        self._outbox.journal.drop_held()
        attempt = self._hold.attempt
        if attempt.changed:
            changes = {key: list(change) for key, change in attempt.changed.items()}
            self._outbox.set_tag(f"{CHANGED_PREFIX}{attempt.ordinal}", json.dumps(redacted_tree(changes)))
        if attempt.code.get("commit"):
            self._outbox.set_tag("mlflow.source.git.commit", attempt.code["commit"])

    def data(self, places: Mapping[str, Path], samples: Mapping[str, Path | str]) -> None:
        """Record data paths and fingerprints as datasets for the UI.

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
        """Upload a small JSON file now, or after an outage.

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
    """Return the digest of sample files or of their description."""
    if isinstance(sample, Path):
        return fingerprint.data({"": sample})[""]
    return hashlib.sha256(sample.encode()).hexdigest()
