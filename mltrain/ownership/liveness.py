"""Identity and liveness of a process on any machine.

Host name, process id and start time do not identify a process: containers have their own names and ids, ids are reused, and
clocks are adjusted. The Linux kernel has an id of each boot, names for the namespaces in which it counts ids and ticks, and
the tick of the boot at which a process began.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil

from mltrain.provenance.fingerprint import host

_PROC: Final = Path("/proc")
_TICKS_FIELD = 22
"""The time at which a process began, in ticks since the boot; see ``proc(5)``."""
_CLOCK_SECONDS = 2.0
_IDENTITY = ("host", "boot", "namespace", "pid", "ticks", "born")


@cache
def boot() -> str:
    """Return the kernel's id of this boot, or ""."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def namespace() -> str:
    """Return the kernel's name of this process's namespaces.

    They are those of process ids and ticks; "" if unknown. The kernel does not reuse a name while a process is in that
    namespace. So an identity with this process's name is from the same namespace, or from one in which no process is left.
    """
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            return ""  # /proc shows another namespace
        kinds = [_PROC / "self/ns" / kind for kind in ("pid", "time")]
        return " ".join(str(kind.readlink()) for kind in kinds if kind.is_symlink())
    except OSError:
        return ""


def own() -> dict[str, Any]:
    """Return the identity of this process."""
    return dict(_own(os.getpid()))  # by id, because a forked process inherits the cache


def described(pid: int) -> dict[str, Any]:
    """Return a local process's identity, as far as visible."""
    return {
        "host": host(),
        "boot": boot(),
        "namespace": namespace(),
        "pid": pid,
        "ticks": _ticks(pid),
        "born": _born(pid),  # what earlier versions of mltrain compare
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of one process."""
    return bool(one.get("pid")) and all(one.get(key) == other.get(key) for key in _IDENTITY)


def advice(holder: Mapping[str, Any]) -> str:
    """Return the remedy for a run that a process holds."""
    return (
        "close() of its manager, or wait until its training in this process ends"
        if same(holder, own())
        else "stop that process, or --take-over"
    )


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether the process with this identity runs.

    Returns:
        ``None`` if this process cannot know: the other one is on another machine or in another container, or its identity
        was recorded by a version or on a system that records too little.
    """
    try:
        pid = int(who.get("pid") or 0)
    except (TypeError, ValueError):
        return None
    if pid <= 0 or (boot() and who.get("boot") != boot()):
        return None  # another boot may be that of another machine with this name
    if not who.get("namespace") or who.get("ticks") is None:
        return _seems_alive(who, pid)
    if who["namespace"] != namespace():
        return None
    ticks = _ticks(pid) if _exists(pid) else -1
    if ticks is None:
        return None  # hidden from this user
    if ticks == who["ticks"]:
        return True
    return False if who.get("host") == host() else None  # a machine cloned while it ran has the same boot id


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@cache
def _own(pid: int) -> Mapping[str, Any]:
    return described(pid)


def _seems_alive(who: Mapping[str, Any], pid: int) -> bool | None:
    """Recognise a process by its start time; another time proves nothing, as clocks are adjusted."""
    born, recorded = _born(pid), who.get("born")
    if boot() and not namespace():
        return None  # ids in this process and in /proc differ
    if born is None or not isinstance(recorded, int | float) or who.get("host") != host() or not is_running(pid):
        return None
    return True if abs(born - recorded) < _CLOCK_SECONDS else None


def _born(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _exists(pid: int) -> bool:
    """Whether the kernel knows a process; ``/proc`` may hide those of other users."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _ticks(pid: int) -> int | None:
    """Return the tick at which a process began.

    Returns -1 if the process has ended, and ``None`` if it is not visible.
    """
    try:
        content = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = content[content.rindex(")") + 2 :].split()  # the name before it may hold spaces and parentheses
        return -1 if fields[0] in "ZX" else int(fields[_TICKS_FIELD - 3])
    except (OSError, ValueError, IndexError):
        return None
