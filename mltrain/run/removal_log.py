"""The record of what retention removed, among the artifacts of a run.

``retention.jsonl`` has the latest removals. When it has grown to :data:`MOST_LINES`, it becomes a file of its own in the
folder ``retention``, and begins anew: so a removal costs the same however many there were before.
"""

import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mltrain.store.artifacts import Artifacts

REMOVALS_FILE = "retention.jsonl"
REMOVALS_FOLDER = "retention"
MOST_LINES = 50


class Removals:
    """The record of one run, for the process that writes to it.

    Args:
        artifacts: of the run.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._lines: list[str] | None = None
        self._count = self._bytes = 0

    def append(self, records: Sequence[Mapping[str, Any]]) -> str:
        """Add lines and return what the tag that sums the record up should be. The record is read once.

        Raises:
            StorageError: the artifact store refuses, or the record that there is cannot be read.
            DamagedCheckpoint: that record is larger than any that was written here.
        """
        if self._lines is None:
            everything = recorded_removals(self._artifacts)
            self._lines = _lines_of(self._artifacts, REMOVALS_FILE)
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


def recorded_removals(artifacts: Artifacts) -> list[str]:
    """Return all lines of the record, oldest first.

    Raises:
        StorageError: the artifact store refuses.
        DamagedCheckpoint: a file is larger than any that was written here.
    """
    older = sorted(entry.name for entry in artifacts.entries(REMOVALS_FOLDER) if not entry.is_dir)
    lines = [line for name in older for line in _lines_of(artifacts, f"{REMOVALS_FOLDER}/{name}")]
    lines += _lines_of(artifacts, REMOVALS_FILE)
    return list(dict.fromkeys(lines))  # who is killed in between leaves lines in two files


def _lines_of(artifacts: Artifacts, path: str) -> list[str]:
    try:
        return artifacts.read(path, 2**28).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []  # anything else is raised: a record that cannot be read now must not be replaced by a shorter one


def _size(line: str) -> int:
    try:
        return int(json.loads(line)["bytes"])
    except (ValueError, KeyError, TypeError):
        return 0
