"""Where a training comes from: versions, the state of the code, the content of the data."""

import ast
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from mltrain.redaction import redacted_uri

_SAMPLED_FILES = 64
_SAMPLED_BYTES = 65536
_MOST_FILES = 200_000


def versions() -> dict[str, str]:
    """Return the versions of what a checkpoint may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in ("mltrain", "torch", "numpy", "mlflow", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def code(folder: Path) -> dict[str, str]:
    """Return git commit, whether files differ from it, remote without secrets, and a digest of the Python files."""
    found = {"digest": _digest_of_code(folder)}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        found["commit"] = commit
        found["dirty"] = "yes" if _git(folder, "status", "--porcelain", "--", ".") else "no"
        remote = _git(folder, "remote", "get-url", "origin")
        if remote:
            found["remote"] = redacted_uri(remote)
    return found


def imported_code(file: Path) -> str:
    """Return a digest of a Python file and of all that it imports, directly or not, from the same checkout or folder.

    Installed packages are left out, and mltrain itself is. The files are read, not imported.
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
    for node in ast.walk(ast.parse(content)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = file.parents[node.level - 1] if node.level else None
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
            if above is not None:
                yield from _sources(names, [above], root)
                continue
        yield from _sources(names, bases, root)


def _sources(names: list[str], bases: list[Path], root: Path) -> Iterator[Path]:
    own = Path(__file__).resolve().parent
    for name in filter(None, names):
        for base in bases:
            path = base.joinpath(*name.split("."))
            found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
            if found is not None:
                found = found.resolve()
                if found.is_relative_to(root) and own not in found.parents and "site-packages" not in found.parts:
                    yield found
                break


def data(places: Mapping[str, Path]) -> dict[str, str]:
    """Return one digest a place: over names and sizes of its files, and over the contents of a sample of them."""
    return {name: _digest_of_data(place) for name, place in sorted(places.items())}


def git_root(folder: Path) -> Path | None:
    """Return the root of the checkout that a folder is in, or none."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    return Path(root) if root else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - whichever git the user has
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _digest_of_code(folder: Path) -> str:
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _digest_of_data(place: Path) -> str:
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
