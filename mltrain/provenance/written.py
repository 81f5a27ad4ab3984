"""Tracks the files that a training writes among its data.

Python raises an audit event for every file that this process opens for writing, creates, renames or removes. For each file and
folder written, the entries at the start of the training are recorded, so that a resume compares the data as they were then. A
folder without files at the start counts as one unit.
"""

import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mltrain.provenance.contents import Contents, Entry

log = logging.getLogger(__name__)

ALL = "*"
"""Too many writes to list; the path is no longer compared."""
_MOST_UNITS = 64
_LONGEST = 4500
_CREATES = os.O_CREAT | os.O_TRUNC | os.O_APPEND

Units = Mapping[str, Mapping[str, Any]] | str
"""For each file or folder written, its entries at the start, or :data:`ALL`."""

_watching: list["Watch"] = []
_hooked = threading.Event()


class Watch:
    """Tracks this process's writes below some paths.

    Args:
        places: the paths by the names of their fields.
        recorded: the text that an earlier attempt passed to ``report``.
    """

    def __init__(self, places: Mapping[str, Path], recorded: str = "") -> None:
        self._roots = {name: {str(place.absolute()), os.path.realpath(place)} for name, place in places.items()}
        self._names = {name: place.name for name, place in places.items()}
        self._units: dict[str, Any] = {name: units for name, units in units_of(recorded).items() if name in places}
        self._early: set[tuple[str, str]] = set()
        self._stamps: dict[tuple[str, str], tuple[int, int]] = {}
        self._contents: Mapping[str, Contents] | None = None
        self._report: Callable[[str], None] | None = None
        self._lock = threading.RLock()
        self._process = os.getpid()
        if not _hooked.is_set():
            sys.addaudithook(_on_audit_event)
            _hooked.set()
        if places:
            _watching.append(self)

    def began(self, contents: Mapping[str, Contents]) -> dict[str, Contents]:
        """Take the contents as data; return them without earlier output.

        Files written since the construction count as data, later writes as output.
        """
        start = {name: as_at_start(found, self._units.get(name, {})) for name, found in contents.items()}
        with self._lock:
            self._contents = start
            if len(self._early) <= _MOST_UNITS:  # more are data that the project unpacked
                self._stamps = {early: _stamp(self._path(*early)) for early in self._early}
        return start

    def look(self) -> None:
        """Record writes to files that were opened earlier."""
        for (name, path), stamp in list(self._stamps.items()):
            if _stamp(self._path(name, path)) != stamp:
                del self._stamps[name, path]
                self._note(name, path)

    def report_to(self, report: Callable[[str], None]) -> None:
        """Report the record as text, now and when it grows."""
        with self._lock:
            self._report = report
            if self._units:
                report(self._text())

    def close(self) -> None:
        """Stop tracking."""
        if self in _watching:
            _watching.remove(self)

    def notice(self, path: str) -> None:
        """Record a write to a path."""
        if os.getpid() != self._process:  # a worker process of a loader has no record to keep
            return
        for name, roots in self._roots.items():
            for root in roots:
                if path == root or path.startswith(root + os.sep):
                    self._note(name, os.path.relpath(path, root).replace(os.sep, "/"))
                    break

    def _path(self, name: str, path: str) -> Path:
        return Path(next(iter(self._roots[name])), path)

    def _note(self, name: str, path: str) -> None:
        with self._lock:
            if self._contents is None:
                self._early.add((name, path))
            elif self._add(name, path) and self._report is not None:
                self._report(self._text())

    def _add(self, name: str, path: str) -> bool:
        units = self._units.setdefault(name, {})
        if units == ALL:
            return False
        files = self._contents[name].files if self._contents is not None and name in self._contents else {}
        is_file = path == "." and self._names[name] in files  # the data may be a single file
        unit = _unit(self._names[name] if is_file else path, files)
        if any(_within(unit, known) for known in units):
            return False
        units[unit] = {file: [e.size, e.digest] for file, e in files.items() if _within(file, unit)}
        if len(units) > _MOST_UNITS or len(self._text()) > _LONGEST:
            self._units[name] = ALL
            log.warning(
                "The training writes more than %d files below %s: a resume will not notice changes of these data.",
                _MOST_UNITS,
                name,
            )
        return True

    def _text(self) -> str:
        return json.dumps(self._units)


def units_of(text: str) -> dict[str, Units]:
    """Parse the record of writes; empty if damaged."""
    with suppress(ValueError, TypeError, AttributeError):
        content = json.loads(text or "{}")
        return {
            str(name): ALL
            if units == ALL
            else {
                str(unit): {str(f): [int(e[0]), str(e[1])] for f, e in files.items()} for unit, files in units.items()
            }
            for name, units in content.items()
        }
    return {}


def as_at_start(contents: Contents, units: Units) -> Contents:
    """Return the contents as they were before the writes."""
    if isinstance(units, str) or not units:
        return contents
    files = {name: entry for name, entry in contents.files.items() if not any(_within(name, unit) for unit in units)}
    for entries in units.values():
        files |= {name: Entry(size, digest) for name, (size, digest) in entries.items()}
    return replace(contents, files=files)


def _stamp(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        status = path.stat()
        return (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    return 0, 0


def _unit(path: str, files: Mapping[str, Entry]) -> str:
    """Return the topmost folder without earlier files, or the path."""
    parts = path.split("/")
    for count in range(len(parts)):
        folder = "/".join(parts[:count]) or "."
        if not any(_within(file, folder) for file in files):
            return folder
    return path


def _within(path: str, unit: str) -> bool:
    return unit in (".", path) or path.startswith(unit + "/")


def _on_audit_event(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        with suppress(Exception):  # an error here must not reach the training
            for path in _written(event, args):
                for watch in tuple(_watching):
                    watch.notice(path)


def _written(event: str, args: tuple[Any, ...]) -> list[str]:
    if event == "open":
        path, mode, flags = args
        writes = any(letter in mode for letter in "wax") if isinstance(mode, str) else bool(flags & _CREATES)
        given = [path] if writes else []
    elif event == "os.mkdir":
        given = [] if os.path.isdir(args[0]) else [args[0]]  # noqa: PTH112 - the path may be bytes
    else:
        given = [args[0]] if event == "os.remove" else list(args[:2]) if event == "os.rename" else [args[1]]
    return [os.path.normpath(Path.cwd() / os.fsdecode(path)) for path in given if isinstance(path, (str, bytes))]
