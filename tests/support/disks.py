"""A disk that counts its calls and fails at one."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.staging import Spool
from tests.support.runs import manifest_of

CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace")
"""The calls by which staging changes a disk."""


CONTENT = {"model.safetensors": [b"weights", b"", memoryview(b" and more")], "state.json": [b"{}"]}


ID = CheckpointId(attempt=1, step=7)


class Disk:
    """Counts the calls that change the disk; fails at one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fatal = 0
        self.failure: Callable[[str], None] = lambda name: None
        for name in CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.fatal:
                self.failure(name)
            return call(*arguments, **named)

        return watched

    def fails(self, number: int, error: int) -> None:
        def fail(name: str) -> None:
            raise OSError(error, os.strerror(error))

        self.calls, self.fatal, self.failure = 0, number, fail

    def works(self) -> None:
        self.calls, self.fatal = 0, 0


def stage(spool: Spool, target: Path, identity: CheckpointId = ID) -> Manifest:
    with spool.staging(identity) as staging:
        for name, content in CONTENT.items():
            staging.write(name, content)
        files = {name: entry.model_dump() for name, entry in staging.files.items()}
        manifest = manifest_of(identity.step, identity.attempt, files=files)
        staging.commit(manifest, target)
    return manifest


def is_complete(folder: Path) -> bool:
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes(), name=folder.name)
    there = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    there.pop("manifest.json")
    return there == {name: entry.sha256 for name, entry in manifest.files.items()}


def name_of(descriptor: int, below: Path) -> str:
    """Return the name of an open file below a folder."""
    return next((path.name for path in below.rglob("*") if os.path.samestat(os.fstat(descriptor), path.stat())), "")


def refuse(
    patch: pytest.MonkeyPatch,
    call: str,
    error: int,
    only: Callable[[int], bool] = lambda descriptor: True,
    *,
    once: bool = False,
) -> list[int]:
    """Let a function of ``os`` fail for some descriptors; return those of the calls that failed."""
    real, failed = getattr(os, call), list[int]()

    def refused(descriptor: int, *content: Any) -> Any:
        if only(descriptor) and not (once and failed):
            failed.append(descriptor)
            raise OSError(error, os.strerror(error))
        return real(descriptor, *content)

    patch.setattr(os, call, refused)
    return failed
