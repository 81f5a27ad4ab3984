"""Reads runs from MLflow's SQLite database without importing MLflow.

The import takes seconds, which is long for a read-only command. The tables are private to MLflow, so anything unknown to this
module (another revision of the database, another form of filter, a missing run) raises :class:`Unreadable`, and the caller
falls back to MLflow.
"""

import math
import os
import re
import sqlite3
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REVISIONS = frozenset({"dc11669786a5", "f4a9b2c7d1e6"})
"""Alembic revisions of MLflow 3.17 and 3.18; revisions between them change other tables."""
READS = frozenset({"get_run", "search_runs", "search_experiments", "get_experiment_by_name"})
"""The ``MlflowClient`` methods that a reader implements."""

_AT_ONCE = 500
_TAG = re.compile(r"tags\.`([^`]+)` (=|!=) '([^']*)'")
_BEGIN = re.compile(r"attributes\.run_id LIKE '([0-9a-f]+)%'")
_AMONG = re.compile(r"attributes\.run_id IN \(('[0-9a-f]{32}'(?:, '[0-9a-f]{32}')*)\)")


class Unreadable(Exception):
    """Only MLflow can read this database or answer this query."""


class Page(list[Any]):
    """One page of search results.

    Attributes:
        token: of the next page. If ``None``, this is the last page.
    """

    def __init__(self, found: Iterable[Any] = (), token: str | None = None) -> None:
        super().__init__(found)
        self.token = token


def uri_of_environment() -> str | None:
    """Return the environment's tracking URI, without importing MLflow.

    Returns ``None`` if only MLflow can tell it.
    """
    if "mlflow" in sys.modules:
        return None  # the program may have set another URI
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    default = Path("mlflow.db").absolute()
    if urllib.request.pathname2url(str(default)) != str(default) or any(Path("mlruns").glob("*/meta.yaml")):
        return None
    return f"sqlite:///{default}"


def database_of(uri: str) -> Path | None:
    """Return the SQLite file of a tracking URI, or ``None``.

    The file may not exist yet.
    """
    prefix, _, path = uri.partition(":///")
    if prefix != "sqlite" or not path or "?" in path or "%" in path or os.environ.get("MLFLOW_ENABLE_WORKSPACES"):
        return None
    return Path(path)


class DatabaseReader:
    """The reading methods of an ``MlflowClient``, for a SQLite file.

    A missing file has no runs. Each method raises :class:`Unreadable` if only MLflow knows the answer.

    Args:
        file: of the database.
        lock_seconds: to wait for another process that writes.
    """

    def __init__(self, file: Path, *, lock_seconds: float = 2.0) -> None:
        self._file = file
        self._lock_seconds = lock_seconds

    def get_run(self, run_id: str) -> Any:
        """Return a run, deleted or not."""
        with self._opened() as database:
            found = self._runs(database, "run_uuid = ?", [run_id])
        if not found:
            raise Unreadable(f"run {run_id} is missing")
        return found[0]

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> Page:
        """Return a page of the matching active runs, newest first."""
        where, values = _condition(filter_string)
        if not self._exists():
            return Page()
        marks, begin = ", ".join("?" * len(experiment_ids)), int(page_token or 0)
        with self._opened() as database:
            found = self._runs(
                database,
                f"lifecycle_stage = 'active' AND experiment_id IN ({marks}){where}",
                [*map(int, experiment_ids), *values],
                f"LIMIT {max_results + 1:d} OFFSET {begin:d}",
            )
        return Page(found[:max_results], str(begin + max_results) if len(found) > max_results else None)

    def search_experiments(self, max_results: int = 1000, page_token: str | None = None) -> Page:
        """Return all active experiments, on one page."""
        return Page(self._experiments("lifecycle_stage = 'active'", []))

    def get_experiment_by_name(self, name: str) -> Any | None:
        """Return an experiment, deleted or not, or ``None``."""
        found = self._experiments("name = ?", [name])
        return found[0] if found else None

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return metric curves (steps, values) by run id and key.

        A curve has all points in the order of their steps.
        """
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with self._opened() as database:
            rows = _rows_by_run(
                database,
                "metrics",
                "key, step, value, is_nan",
                run_ids,
                f"AND key IN ({', '.join('?' * len(keys))}) ORDER BY step, timestamp",
                keys,
            )
        for run_id, points in rows.items():
            for key, step, value, is_nan in points:
                found.setdefault((run_id, key), []).append((step, math.nan if is_nan else value))
        return found

    def _experiments(self, where: str, values: list[Any]) -> list[Any]:
        if not self._exists():
            return []
        with self._opened() as database:
            return _rows(
                database,
                "SELECT CAST(experiment_id AS TEXT) AS experiment_id, name, artifact_location, lifecycle_stage "
                f"FROM experiments WHERE {where} ORDER BY last_update_time DESC, experiments.experiment_id DESC",
                values,
            )

    def _exists(self) -> bool:
        return os.path.lexists(self._file)

    def _runs(self, database: sqlite3.Connection, where: str, values: list[Any], limit: str = "") -> list[Any]:
        infos = _rows(
            database,
            "SELECT run_uuid AS run_id, name AS run_name, CAST(experiment_id AS TEXT) AS experiment_id, user_id, status, "
            f"start_time, end_time, lifecycle_stage, artifact_uri FROM runs WHERE {where} "
            f"ORDER BY start_time DESC, run_uuid {limit}",
            values,
        )
        ids = [info.run_id for info in infos]
        tags, params = (_rows_by_run(database, table, "key, value", ids) for table in ("tags", "params"))
        points = _rows_by_run(database, "latest_metrics", "key, value, timestamp, step, is_nan", ids)
        found = []
        for info in infos:
            own = [_point(*row) for row in points.get(info.run_id, ())]
            data = SimpleNamespace(
                tags=dict(tags.get(info.run_id, ())),
                params=dict(params.get(info.run_id, ())),
                metrics={point.key: point.value for point in own},
                _metric_objs=own,
            )
            info.run_name = info.run_name or data.tags.get("mlflow.runName")
            found.append(SimpleNamespace(info=info, data=data))
        return found

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the database for reading.

        Raises:
            Unreadable: it is locked or damaged, or has an unknown revision.
        """
        try:
            address = f"{self._file.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, timeout=self._lock_seconds)) as database:
                database.execute("PRAGMA case_sensitive_like = true")
                revisions = database.execute("SELECT version_num FROM alembic_version").fetchall()
                if len(revisions) != 1 or revisions[0][0] not in REVISIONS:
                    raise Unreadable("its tables have another revision")
                yield database
        except (sqlite3.Error, OSError, ValueError) as error:
            raise Unreadable(str(error)) from error


def _condition(filter_string: str) -> tuple[str, list[str]]:
    """Return a filter's SQL condition and its values.

    The condition begins with AND.

    Raises:
        Unreadable: mltrain does not use this form of filter.
    """
    where, values = "", []
    for part in re.split(r"(?i) and ", filter_string) if filter_string else ():
        tag, begin, among = _TAG.fullmatch(part), _BEGIN.fullmatch(part), _AMONG.fullmatch(part)
        if tag is not None:
            key, compare, value = tag.groups()
            where += f" AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value {compare} ?)"
            values += [key, value]
        elif begin is not None:
            where += " AND run_uuid LIKE ?"
            values.append(f"{begin[1]}%")
        elif among is not None:
            ids = among[1].replace("'", "").split(", ")
            where += f" AND run_uuid IN ({', '.join('?' * len(ids))})"
            values += ids
        else:
            raise Unreadable(f"the filter {part!r}")
    return where, values


def _rows(database: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[Any]:
    """Return a query's rows as objects with its column names."""
    found = database.execute(query, values)
    names = [column[0] for column in found.description]
    return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in found]


def _rows_by_run(
    database: sqlite3.Connection,
    table: str,
    columns: str,
    run_ids: Sequence[str],
    more: str = "",
    values: Sequence[str] = (),
) -> dict[str, list[tuple[Any, ...]]]:
    """Return a table's rows for each run id."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for begin in range(0, len(run_ids), _AT_ONCE):
        ids = run_ids[begin : begin + _AT_ONCE]
        marks = ", ".join("?" * len(ids))
        for run_id, *row in database.execute(
            f"SELECT run_uuid, {columns} FROM {table} WHERE run_uuid IN ({marks}) {more}",
            [*ids, *values],
        ):
            found.setdefault(run_id, []).append(tuple(row))
    return found


def _point(key: str, value: float, timestamp: int, step: int, is_nan: int) -> Any:
    return SimpleNamespace(key=key, value=math.nan if is_nan else value, timestamp=timestamp, step=step)
