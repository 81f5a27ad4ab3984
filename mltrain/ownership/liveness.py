"""Processes of this machine and of others: which one is meant, and whether it still runs.

The name of a machine, a process id and a time of day prove nothing: containers have names and ids of their own, ids are used
again, and clocks are set. On Linux the kernel knows better: it has an id of its boot, names for the namespaces in which ids and
ticks are counted, and the tick of that boot at which a process began.
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
_WHO = ("host", "boot", "namespace", "pid", "ticks", "born")


@cache
def boot() -> str:
    """Return the kernel's id of this boot, or "" where it has none."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def namespace() -> str:
    """Return the kernel's name of the namespaces in which process ids and ticks are counted, or "" where it has none.

    A name is not used again while a process is in that namespace. So where it is that of this process, it is either the
    same namespace or one in which no process is left.
    """
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            return ""  # this /proc shows another namespace
        kinds = [_PROC / "self/ns" / kind for kind in ("pid", "time")]
        return " ".join(str(kind.readlink()) for kind in kinds if kind.is_symlink())
    except OSError:
        return ""


def own() -> dict[str, Any]:
    """Return what tells this process from every other one, of this machine or not."""
    return dict(_own(os.getpid()))  # a forked process is another one


def described(pid: int) -> dict[str, Any]:
    """Return what tells a process of this machine from every other one, as far as it can be seen."""
    return {
        "host": host(),
        "boot": boot(),
        "namespace": namespace(),
        "pid": pid,
        "ticks": _ticks(pid),
        "born": _born(pid),  # what earlier versions of mltrain compare
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one process."""
    return bool(one.get("pid")) and all(one.get(key) == other.get(key) for key in _WHO)


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether a described process runs.

    Returns:
        ``None`` where it cannot be known from here: it runs on another machine, or in another container of this one, or
        the description comes from a version or a system that did not say enough.
    """
    try:
        pid = int(who.get("pid") or 0)
    except (TypeError, ValueError):
        return None
    if pid <= 0 or (boot() and who.get("boot") != boot()):
        return None  # another boot of a machine of this name may be another machine
    if not who.get("namespace") or who.get("ticks") is None:
        return _seems_alive(who, pid)
    if who["namespace"] != namespace():
        return None
    ticks = _ticks(pid) if _exists(pid) else -1
    if ticks is None:
        return None  # hidden from this user
    if ticks == who["ticks"]:
        return True
    return False if who.get("host") == host() else None  # a machine that was cloned while it ran has the same boot


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and was not waited for yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@cache
def _own(pid: int) -> Mapping[str, Any]:
    return described(pid)


def _seems_alive(who: Mapping[str, Any], pid: int) -> bool | None:
    """Recognise a process by the time of day at which it began. That this does not fit proves nothing."""
    born, recorded = _born(pid), who.get("born")
    if boot() and not namespace():
        return None  # ids here and in /proc are not the same
    if born is None or not isinstance(recorded, int | float) or who.get("host") != host() or not is_running(pid):
        return None
    return True if abs(born - recorded) < _CLOCK_SECONDS else None


def _born(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _exists(pid: int) -> bool:
    """Ask the kernel, on Linux, and not ``/proc``, which may hide the processes of other users."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _ticks(pid: int) -> int | None:
    """Return at which tick of this boot a process began; -1 for one that has ended; ``None`` where it is not visible."""
    try:
        content = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = content[content.rindex(")") + 2 :].split()  # the name before it may hold anything
        return -1 if fields[0] in "ZX" else int(fields[_TICKS_FIELD - 3])
    except (OSError, ValueError, IndexError):
        return None
