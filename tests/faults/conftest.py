import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.support.forkserver import ForkServer
from tests.support.mounted import MountedDisk
from tests.support.servers import TrackingServer
from tests.support.workplace import Workplace

HOURS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long sweeps their time: a single test of them lets every call of a training fail."""
    if os.environ.get("MLTRAIN_SWEEP") == "full":
        for item in items:
            item.add_marker(pytest.mark.timeout(HOURS * 3600), append=False)


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


@pytest.fixture
def mounted() -> Iterator[Callable[..., MountedDisk]]:
    """Mount small filesystems until the test ends."""
    disks: list[MountedDisk] = []

    def mount(place: Path, options: str = "size=3m") -> MountedDisk:
        disks.append(MountedDisk(place, options))
        return disks[-1]

    yield mount
    for disk in disks:
        disk.unmount()
