"""A run's folder on this host: staging, journal, lock."""

import json
import logging
import os
import re
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mltrain.compat.database import database_of
from mltrain.errors import StorageError
from mltrain.redaction import redacted_uri
from mltrain.store.durable import replace_file, set_aside
from mltrain.store.folders import refuse_unwritable, state_folder
from mltrain.tracking.client import RUN_ID, TrackingClient

log = logging.getLogger(__name__)

_ADDRESS_FILE = "store.json"
_STORE_FOLDER = re.compile(r"[0-9a-f]{12}", re.ASCII)
_NAMED = ("databricks", "databricks-uc", "uc")
_PORTS = {"http": 80, "https": 443}


def homes(server: TrackingClient) -> Path:
    """Return this host's folder for a tracking store's runs."""
    return state_folder() / _folder_name(address_of(server.uri))


def address_of(uri: str) -> str:
    """Return a tracking URI's canonical form, without user and password.

    Paths are absolute, hosts in lower case, loopback addresses become ``localhost``, and default ports are omitted. URIs of
    one form are certainly of one store.
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
    """Yield folder and address of this host's tracking stores.

    The folder of this server comes first, then the one that an earlier version created for this form of its URI.

    Yields:
        The folder, and the address of the store without credentials, or ``None`` if it is this server's. If an earlier
        version recorded no address, it is ``unknown`` with the folder.
    """
    own = [homes(server), state_folder() / _folder_name(server.uri)]
    yield from ((root, None) for root in dict.fromkeys(own) if root.is_dir())
    for root in sorted(state_folder().glob("*")):
        if root not in own and _STORE_FOLDER.fullmatch(root.name) and root.is_dir():
            address = _recorded_address(root)
            yield root, None if address == redacted_uri(address_of(server.uri)) else address


def may_be(server: TrackingClient, address: str | None) -> bool:
    """Whether an address may be that of this server.

    Two database files that exist and differ are two stores; all else may be one.

    Args:
        server: the tracking server in use.
        address: as :func:`stores` yields it.
    """
    here, there = (_database_of(uri) for uri in (address_of(server.uri), address or ""))
    return address is None or here is None or there is None or here.samefile(there)


def home_of(server: TrackingClient, run_id: str) -> Path:
    """Return a run's folder here; create it if missing.

    It holds the staged checkpoints, the journal and the log.

    Raises:
        StorageError: the folder cannot be created.
    """
    return _created(known_home(server, run_id))


def known_home(server: TrackingClient, run_id: str) -> Path:
    """Return the folder of a run, which may not exist.

    A folder under another address of the run's store counts too: run ids are unique.
    """
    for root, address in stores(server):
        home = root / _name_in(root, run_id)
        if home.is_dir() and may_be(server, address):
            return home
    return homes(server) / run_id


def refuse_unwritable_places(server: TrackingClient) -> None:
    """Check that runs' folder and SQLite database are writable.

    Neither is created.

    Raises:
        StorageError: the folder or the database's cannot be created or written to, or the database cannot.
    """
    refuse_unwritable(homes(server), "Try: MLTRAIN_HOME=FOLDER")
    file, remedy = (
        database_of(server.uri),
        "The runs are recorded there. Try: MLFLOW_TRACKING_URI=sqlite:///FOLDER/mlflow.db",
    )
    if file is None:
        return
    refuse_unwritable(file.resolve().parent, remedy)  # where SQLite writes its journal
    if file.exists() and not os.access(file, os.W_OK):
        raise StorageError(f"{file.absolute()} cannot be written by this user. {remedy}")


def outputs_home(server: TrackingClient) -> Path:
    """Return this host's folder for stage outputs, named by digest.

    Raises:
        StorageError: the folder cannot be created.
    """
    return _created(homes(server) / "outputs")


def record_address(uri: str, home: Path) -> None:
    """Record a tracking store's address beside its runs' folders.

    Args:
        uri: of the tracking store.
        home: folder of one of the runs.
    """
    file = home.parent / _ADDRESS_FILE
    if not file.is_file():
        with suppress(StorageError):
            replace_file(file, json.dumps({"uri": redacted_uri(address_of(uri))}).encode())


def _database_of(address: str) -> Path | None:
    """Return a SQLite URI's file. ``None`` if this host lacks it."""
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
    """Return the folder name of a run: its provisional id if it was created offline."""
    with suppress(OSError, ValueError):
        earlier = (root / f"{run_id}.home").read_text(encoding="ascii")
        return earlier if RUN_ID.fullmatch(earlier) else run_id
    return run_id


def _created(home: Path) -> Path:
    try:
        if os.path.lexists(home) and not home.is_dir():
            log.warning(
                "%s is not a folder. It was renamed to %s, and a folder takes its place.", home, set_aside(home).name
            )
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{home} cannot be created: {error.strerror}. Expected a writable folder. Try: MLTRAIN_HOME=FOLDER"
        ) from error
    return home


def remember_home(run_id: str, home: Path) -> None:
    """Record a run's folder from before its creation.

    Raises:
        StorageError: the disk refuses.
    """
    replace_file(home.parent / f"{run_id}.home", home.name.encode("ascii"))


def created_from(home: Path) -> str | None:
    """Return a provisional folder's MLflow run id. ``None`` until recorded."""
    for file in home.parent.glob("*.home"):
        with suppress(OSError, ValueError):
            if RUN_ID.fullmatch(file.stem) and file.read_text(encoding="ascii") == home.name:
                return file.stem
    return None


def grace_seconds() -> float:
    """Return the grace period in seconds: ``MLTRAIN_GRACE_SECONDS``, default 25."""
    try:
        return max(0.0, float(os.environ.get("MLTRAIN_GRACE_SECONDS", "25")))
    except ValueError:
        return 25.0
