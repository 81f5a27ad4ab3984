from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workplace
from tests.faults.proxy import FaultProxy
from tests.forkserver import ForkServer
from tests.servers import TrackingServer


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def remote(tracking: TrackingServer, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path / "here", fork_server, tracking.uri)


@pytest.fixture
def proxy(tracking: TrackingServer) -> Iterator[FaultProxy]:
    between = FaultProxy(tracking.port)
    yield between
    between.close()


@pytest.fixture
def disturbed(proxy: FaultProxy, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    """A machine that reaches the tracking server through the proxy."""
    return Workplace(tmp_path / "disturbed", fork_server, proxy.uri)
