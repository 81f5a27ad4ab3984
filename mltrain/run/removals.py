"""The record of a run's removed checkpoints.

``retention.jsonl`` has the latest removals. At :data:`MOST_LINES` lines it is moved into the folder ``retention`` and a new
one begins, so that a removal costs the same however many came before.
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
