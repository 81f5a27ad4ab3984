"""The folder on this host where a run is staged, journalled and locked."""

import json
import logging
import os
import re
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mltrain.errors import StorageError
from mltrain.redaction import redacted_uri
from mltrain.store.artifacts import refuse_unwritable, state_folder
from mltrain.store.durable import replace_file, set_aside
from mltrain.tracking.client import RUN_ID, TrackingClient

log = logging.getLogger(__name__)

_ADDRESS_FILE = "store.json"
_STORE_FOLDER = re.compile(r"[0-9a-f]{12}", re.ASCII)
_NAMED = ("databricks", "databricks-uc", "uc")
_PORTS = {"http": 80, "https": 443}


def homes(server: TrackingClient) -> Path:
    """Return the folder for the homes of all runs of a tracking store on this host."""
    return state_folder() / _folder_name(address_of(server.uri))


def address_of(uri: str) -> str:
    """Return one spelling for all tracking URIs that certainly mean one store; without user name and password.

    Paths are absolute, hosts in lower case, ``localhost`` stands for the loopback addresses, and default ports are left out.
    """
    parts = urllib.parse.urlsplit(uri)
    if uri in _NAMED:
        return uri
    if len(parts.scheme) <= 1 or parts.scheme == "file":  # a path; one letter is a drive of Windows
        path = urllib.parse.unquote(parts.path) if parts.scheme == "file" else uri
        return Path(os.path.realpath(path)).as_uri()
    if parts.scheme.partition("+")[0] == "sqlite":
        path, _, options = uri.partition(":///")[2].partition("?")
        if not path or path == ":memory:" or path.startswith("file:"):
            return uri
        return f"sqlite:///{os.path.realpath(path)}{'?' + options if options else ''}"
    try:
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return uri
    if host in ("127.0.0.1", "::1", "0.0.0.0"):  # noqa: S104 - compared, not bound
        host = "localhost"
    where = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS.get(parts.scheme):
        where += f":{port}"
    return urllib.parse.urlunsplit((parts.scheme, where, parts.path.rstrip("/"), parts.query, ""))


def stores(server: TrackingClient) -> Iterator[tuple[Path, str | None]]:
    """Yield the folders of all tracking stores on this host, and where each store is.

    The folder of this server comes first, then the one that an earlier version made for this spelling of its URI.

    Yields:
        The folder, and the address of the store without its secrets; ``None`` if it is this server's. An earlier version
        recorded no address: then the name of the folder stands for it.
    """
    own = [homes(server), state_folder() / _folder_name(server.uri)]
    yield from ((root, None) for root in dict.fromkeys(own) if root.is_dir())
    for root in sorted(state_folder().glob("*")):
        if root not in own and _STORE_FOLDER.fullmatch(root.name) and root.is_dir():
            address = _recorded_address(root)
            yield root, None if address == redacted_uri(address_of(server.uri)) else address


def may_be(server: TrackingClient, address: str | None) -> bool:
    """Whether an address may be that of this server; two files that both exist and differ are two stores.

    Args:
        server: the one in use.
        address: as :func:`stores` yields it.
    """
    here, there = (_database_of(uri) for uri in (address_of(server.uri), address or ""))
    return address is None or here is None or there is None or here.samefile(there)


def home_of(server: TrackingClient, run_id: str) -> Path:
    """Return the folder on this host for staging, journal and log of a run, and make it if need be.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(known_home(server, run_id))


def known_home(server: TrackingClient, run_id: str) -> Path:
    """Return the folder for a run, made or not.

    Where the run was written to from this host under another address of its store, that is the folder: ids are unique.
    """
    for root, address in stores(server):
        home = root / _name_in(root, run_id)
        if home.is_dir() and may_be(server, address):
            return home
    return homes(server) / run_id


def refuse_unwritable_home(server: TrackingClient) -> None:
    """Refuse a home for runs that cannot be made or written to, without making it.

    Raises:
        StorageError: it cannot.
    """
    refuse_unwritable(homes(server), "Set MLTRAIN_HOME to a folder that is writable.")


def outputs_home(server: TrackingClient) -> Path:
    """Return the folder on this host that holds copies of what stages of pipelines handed on, by their digests.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(homes(server) / "outputs")


def record_address(uri: str, home: Path) -> None:
    """Note for people where the store of a run is, beside its home.

    Args:
        uri: of the tracking store.
        home: of the run.
    """
    file = home.parent / _ADDRESS_FILE
    if not file.is_file():
        with suppress(StorageError):
            replace_file(file, json.dumps({"uri": redacted_uri(address_of(uri))}).encode())


def _database_of(address: str) -> Path | None:
    """Return the file of a database that is on this host and exists, else ``None``."""
    kind, _, path = address.partition(":///")
    file = Path(path.partition("?")[0])
    return file if kind.partition("+")[0] == "sqlite" and file.is_file() else None


def _folder_name(address: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, address).hex[:12]


def _recorded_address(root: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((root / _ADDRESS_FILE).read_text(encoding="utf-8"))["uri"])
    return f"unknown (see {root})"


def _name_in(root: Path, run_id: str) -> str:
    """Return what a run's home is called: where it was written to before it was created, by what it went by then."""
    with suppress(OSError, ValueError):
        earlier = (root / f"{run_id}.home").read_text(encoding="ascii")
        return earlier if RUN_ID.fullmatch(earlier) else run_id
    return run_id


def _made(home: Path) -> Path:
    try:
        if os.path.lexists(home) and not home.is_dir():
            log.warning("%s is no folder. It is kept as %s, and a folder takes its place.", home, set_aside(home).name)
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{home} cannot be made: {error.strerror}. Set MLTRAIN_HOME to a folder that is writable."
        ) from error
    return home


def remember_home(run_id: str, home: Path) -> None:
    """Let a run be found in the home that it had before it was created.

    Raises:
        StorageError: the disk refuses.
    """
    replace_file(home.parent / f"{run_id}.home", home.name.encode("ascii"))


def created_from(home: Path) -> str | None:
    """Return the id of the run that was created for a home from before that; ``None`` without such a record."""
    for file in home.parent.glob("*.home"):
        with suppress(OSError, ValueError):
            if RUN_ID.fullmatch(file.stem) and file.read_text(encoding="ascii") == home.name:
                return file.stem
    return None


def grace_seconds() -> float:
    """Return how long the end of a process may take, from ``MLTRAIN_GRACE_SECONDS`` (default 25)."""
    try:
        return max(0.0, float(os.environ.get("MLTRAIN_GRACE_SECONDS", "25")))
    except ValueError:
        return 25.0
