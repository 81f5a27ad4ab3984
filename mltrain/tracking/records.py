"""The record of what retention removed: ``retention.jsonl`` among the artifacts of a run."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mltrain.tracking.artifacts import Artifacts

REMOVALS_FILE = "retention.jsonl"
REMOVED_TAG = "mltrain.removed"


def append_removals(artifacts: Artifacts, records: Sequence[Mapping[str, Any]]) -> str:
    """Add lines to the record and return what the tag that sums it up should say.

    Raises:
        StorageError: the artifact store refuses, or the record that there is cannot be read.
        DamagedCheckpoint: that record is larger than any that was written here.
    """
    lines = _existing(artifacts) + [json.dumps(record) for record in records]
    with tempfile.TemporaryDirectory(prefix="mltrain-") as folder:
        file = Path(folder) / REMOVALS_FILE
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        artifacts.upload(file)
    return f"{len(lines)} checkpoints, {sum(_bytes(line) for line in lines)} bytes"


def _existing(artifacts: Artifacts) -> list[str]:
    try:
        return artifacts.read(REMOVALS_FILE, 2**28).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []  # anything else is raised: a record that cannot be read now must not be replaced by a shorter one


def _bytes(line: str) -> int:
    try:
        return int(json.loads(line)["bytes"])
    except (ValueError, KeyError, TypeError):
        return 0
