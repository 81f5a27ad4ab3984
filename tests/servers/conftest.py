"""A real PostgreSQL server behind ``mlflow server``. By command: make servers"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forkserver import ForkServer
from tests.support.servers import TrackingServer
from tests.support.waiting import eventually
from tests.support.workplace import Workplace


def _programs() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert folders, "There is no PostgreSQL here. Try: apt-get install postgresql"
    return folders[-1]


class PostgresServer:
    """A PostgreSQL server in a folder, reached by its socket. It refuses to run as root, so another user runs it."""

    def __init__(self, folder: Path) -> None:
        self._programs, self.folder = _programs(), folder
        self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
            for above in folder.parents:
                if above.name.startswith("pytest-"):
                    above.chmod(above.stat().st_mode | 0o011)  # so that the other user finds the way
        self.uri = f"postgresql+psycopg://postgres@/postgres?host={folder}"

    def start(self) -> None:
        initdb = [*self._user, self._programs / "initdb", "-D", self.folder / "data", "-A", "trust", "-U", "postgres"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=self.folder)
        server = [*self._user, self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*server, "-c", "listen_addresses="], cwd=self.folder, stdout=log, stderr=log
            )
        eventually(lambda: (self.folder / ".s.PGSQL.5432").exists(), "the start of PostgreSQL")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


class OnPostgres(TrackingServer):
    """An MLflow server whose tracking store is a PostgreSQL database."""

    def __init__(self, folder: Path, database: str) -> None:
        super().__init__(folder)
        self._database = database

    def command(self) -> list[str]:
        own = f"sqlite:///{self.folder / 'mlflow.db'}"
        return [self._database if word == own else word for word in super().command()]


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    database = PostgresServer(tmp_path_factory.mktemp("pg"))
    database.start()
    yield database
    database.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgresServer) -> Iterator[str]:
    server = OnPostgres(tmp_path_factory.mktemp("tracking"), postgresql.uri)
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture
def on_postgres(postgres: str, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path / "here", fork_server, postgres)
