"""Fingerprints of a training's versions, code and data."""

import ast
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from mltrain.provenance.contents import Contents, contents_of
from mltrain.provenance.written import ALL, Units, as_at_start
from mltrain.redaction import redacted_uri

ABSENT = "absent"
"""Digest of a missing path."""
_SAMPLED_FILES = 64
_SAMPLED_BYTES = 65536
_MOST_FILES = 200_000
_CODE = "imports:"
_PACKAGE = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Return the versions that a checkpoint may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in ("mltrain", "torch", "numpy", "mlflow", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def code(place: Path) -> dict[str, str]:
    """Return commit, local changes, remote and a digest of code.

    Args:
        place: a Python file or a folder. The digest covers the file, or the folder's ``project.py``, and its imports. In a
            folder without ``project.py`` it covers all Python files but those in environments, hidden folders, installed
            packages and nested checkouts.
    """
    folder = place if place.is_dir() else place.parent
    found = {"digest": _digest_of_code(place)}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        found["commit"] = commit
        found["dirty"] = "yes" if _git(folder, "status", "--porcelain", "--", ".") else "no"
        remote = _git(folder, "remote", "get-url", "origin")
        if remote:
            found["remote"] = redacted_uri(remote)
    return found


def same_code(before: str, now: str) -> bool:
    """Whether code digests are equal, or cannot be compared."""
    return before == now or before.startswith(_CODE) != now.startswith(_CODE)


def imported_code(file: Path) -> str:
    """Return a digest of a file and its local imports.

    Indirect imports count. Installed packages and mltrain itself do not. The files are read, not imported.
    """
    file = file.resolve()
    root = git_root(file.parent) or file.parent
    known: dict[Path, bytes] = {}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in known:
            continue
        known[current] = current.read_bytes().replace(b"\r\n", b"\n")
        waiting.extend(_imports(current, known[current], root.resolve()))
    digest = hashlib.sha256()
    for path in sorted(known):
        digest.update(path.relative_to(root.resolve()).as_posix().encode() + b"\0" + known[path] + b"\0")
    return digest.hexdigest()[:16]


def _imports(file: Path, content: bytes, root: Path) -> Iterator[Path]:
    bases = [file.parent, *(Path(entry or ".").resolve() for entry in sys.path)]
    for level, names in _imported_names(content):
        yield from _sources(names, [file.parents[level - 1]] if level else bases, root)


@cache
def _imported_names(content: bytes) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the level and possible modules of each import.

    Cached, because several stages of a pipeline import the same files and parsing is slow.
    """
    try:
        parsed = ast.parse(content)
    except (SyntaxError, ValueError):  # running the file will raise the error
        return ()
    found: list[tuple[int, tuple[str, ...]]] = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found.append((0, tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = (module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names))
            found.append((node.level, names))
    return tuple(found)


def _sources(names: Iterable[str], bases: list[Path], root: Path) -> Iterator[Path]:
    for name in filter(None, names):
        for base in bases:
            path = base.joinpath(*name.split("."))
            found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
            if found is not None:
                found = found.resolve()
                if found.is_relative_to(root) and _PACKAGE not in found.parents and not _is_installed(found, root):
                    yield found
                break


def _is_installed(file: Path, root: Path) -> bool:
    """Whether a file belongs to an environment or hidden folder."""
    folders = [folder for folder in file.parents if folder.is_relative_to(root) and folder != root]
    return any(_is_foreign(folder) for folder in folders)


def _is_foreign(folder: Path) -> bool:
    name = folder.name
    return (
        name in ("site-packages", "dist-packages", "node_modules")
        or name.startswith(".")
        or (folder / "pyvenv.cfg").is_file()
    )


def data(places: Mapping[str, Path]) -> dict[str, str]:
    """Return a digest for each path; see :mod:`mltrain.provenance.contents`."""
    return {name: digest_of(contents) for name, contents in contents_by_name(places).items()}


def contents_by_name(places: Mapping[str, Path]) -> dict[str, Contents | None]:
    """Return the contents of each path, ``None`` if missing."""
    there = {name: os.path.exists(place) for name, place in sorted(places.items())}  # noqa: PTH110 - Path.exists fails on a path that is too long
    return {name: contents_of(places[name]) if exists else None for name, exists in there.items()}


def digest_of(contents: Contents | None) -> str:
    """Return the digest of a path's contents."""
    return contents.digest if contents is not None else ABSENT


def same_data(before: str, now: str, place: Path, units: Units, *, may_fill: bool) -> bool:
    """Whether data are unchanged, apart from the training's own files.

    Args:
        before: the earlier digest, possibly by the rule of an earlier version or another budget.
        now: the current digest.
        place: the file or folder.
        units: what the training wrote there.
        may_fill: whether a path that was missing or empty may have files now.
    """
    if before == now or units == ALL:
        return True
    if before == ABSENT or "(0 files" in before:
        return may_fill or not as_at_start(contents_of(place), units).files
    rule = before.partition(":")[0] if ":" in before else None
    if rule is None:
        return _digest_before_contents(place) == before
    if rule != "sha256" and not rule.removeprefix("sample").isdigit():
        return False
    return as_at_start(contents_of(place, rule), units).digest == before


def git_root(folder: Path) -> Path | None:
    """Return the root of a folder's checkout, or ``None``."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    return Path(root) if root else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - the git on the user's PATH
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _digest_of_code(place: Path) -> str:
    file = place / "project.py" if place.is_dir() else place
    if file.is_file():
        return _CODE + imported_code(file)
    digest = hashlib.sha256()
    for one in sorted(_own_code(place)):
        with suppress(OSError):
            digest.update(one.relative_to(place).as_posix().encode() + b"\0" + one.read_bytes() + b"\0")
    return _CODE + digest.hexdigest()[:16]


def _own_code(folder: Path) -> Iterator[Path]:
    for current, folders, names in os.walk(folder):
        above = Path(current)
        folders[:] = [
            name
            for name in folders
            if not _is_foreign(above / name)
            and name not in ("__pycache__", "build", "dist", "mlruns", "mlartifacts")
            and not (above / name / ".git").exists()
        ]
        yield from (above / name for name in names if name.endswith(".py"))


def _digest_before_contents(place: Path) -> str:
    """Return the digest that earlier versions of mltrain recorded.

    It covers the first 64 KiB of at most 127 files.
    """
    digest = hashlib.sha256()
    entries = sorted(_files(place))
    for relative, size, _ in entries:
        digest.update(f"{relative}\0{size}\n".encode())
    stride = max(1, len(entries) // _SAMPLED_FILES)
    for _, _, file in entries[::stride]:
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
    return f"{digest.hexdigest()[:16]} ({len(entries)} files)"


def _files(place: Path) -> Iterator[tuple[str, int, Path]]:
    if place.is_file():
        yield place.name, place.stat().st_size, place
        return
    count = 0
    for folder, _, names in os.walk(place):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                yield file.relative_to(place).as_posix(), file.stat().st_size, file
                count += 1
                if count >= _MOST_FILES:
                    return
