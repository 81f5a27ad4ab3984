"""Other engines on a tracking server with outages. The server proxies the artifacts."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.adapters.huggingface import MltrainCallback, restore
from mltrain.adapters.origin import Address, Origin
from mltrain.run.checkpoints import open_checkpoints
from tests.adapters.conftest import no_accelerator as no_accelerator
from tests.adapters.ignite_loops import Loop
from tests.adapters.lightning_nets import Interruption, fit
from tests.faults.proxy import FaultProxy, Rule
from tests.support import accelerate_loop, huggingface
from tests.support.equality import identical
from tests.support.forked import killed
from tests.support.forkserver import ForkServer
from tests.support.servers import TrackingServer
from tests.support.waiting import eventually
from tests.support.workplace import Workplace

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # of the engines
]

CLOCK = ("runtime", "_per_second", "total_flos", "train_loss")
AT = 8
"""The step at which something happens."""
Action = Callable[[], Any]


class Acting(Interruption):
    """Does something in a step of Lightning."""

    def __init__(self, action: Action) -> None:
        super().__init__(AT, 0)
        self.action = action

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped == self.step and not self.done:
            self.done = True
            self.action()


def lightning(resume: str | None, action: Action, folder: Path) -> str:
    return str(fit("epochs", resume and f"mltrain:{resume}", interruption=Acting(action))[1].run_id)


def ignite(resume: str | None, action: Action, folder: Path) -> str:
    return str(Loop(resume and f"mltrain:{resume}", at=(AT, lambda loop: action())).run().saver.run_id)


def transformers(resume: str | None, action: Action, folder: Path) -> str:
    callback = MltrainCallback()
    training = huggingface.trainer(folder, callback, huggingface.At(AT, action))
    training.train(resume_from_checkpoint=restore(resume) if resume is not None else None)
    return str(callback.run_id)


def accelerate(resume: str | None, action: Action, folder: Path) -> str:
    return accelerate_loop.train(resume, after=lambda step: action() if step == AT else None, waiting=False)


ENGINES: dict[str, Callable[[str | None, Action, Path], str]] = {
    "lightning": lightning,
    "ignite": ignite,
    "transformers": transformers,
    "accelerate": accelerate,
}


@dataclass(frozen=True)
class Ended:
    """What a run has in the end."""

    curves: Mapping[str, list[tuple[int, float]]]
    state: Mapping[str, Any]
    status: str


class Machine:
    """The test's process as a machine behind the proxy."""

    def __init__(
        self, folder: Path, proxy: FaultProxy, tracking: TrackingServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self.proxy, self.tracking, self._patch = folder, proxy, tracking, monkeypatch
        self.home("home")
        for name, value in {
            "MLFLOW_TRACKING_URI": proxy.uri,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
            "MLTRAIN_GRACE_SECONDS": "60",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)

    def home(self, name: str) -> None:
        """Go on as another machine."""
        self._patch.setenv("MLTRAIN_HOME", str(self.folder / name))

    def away(self) -> None:
        """Let the server answer nothing from now on."""
        self.proxy.rules = [Rule(".", ["reset"])]

    def away_for_good(self) -> None:
        self._patch.setenv("MLTRAIN_GRACE_SECONDS", "3")
        self.away()

    def back(self) -> None:
        self.proxy.rules = []

    def newest(self) -> str:
        client = MlflowClient(self.tracking.uri)
        (run,) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
        return str(run.info.run_id)

    def ended(self, run_id: str) -> Ended:
        """Look at a run without the proxy."""
        client = MlflowClient(self.tracking.uri)
        run = client.get_run(run_id)
        keys = [key for key in run.data.metrics if not key.startswith("system/") and not key.endswith(CLOCK)]
        curves = {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}
        return Ended(curves, Origin.read(Address(run_id)).state, run.info.status)


@pytest.fixture
def machine(
    tmp_path: Path, proxy: FaultProxy, tracking: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    yield Machine(tmp_path, proxy, tracking, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tracking: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Machine], Ended]:
    """What an engine's training ends with when nothing happens; made once."""
    found: dict[str, Ended] = {}

    def made(engine: str, machine: Machine) -> Ended:
        if engine not in found:
            machine.home("undisturbed")  # else the sync of a test would list this run too
            found[engine] = machine.ended(ENGINES[engine](None, lambda: None, tmp_path_factory.mktemp(engine)))
            machine.home("home")
        return found[engine]

    return made


def assert_as(expected: Ended, found: Ended) -> None:
    assert found.curves == expected.curves
    assert found.status == expected.status == "FINISHED"
    for part in expected.state.keys() - {"trainer", "mltrain", "callbacks"}:  # which name their run and the time
        assert identical(found.state[part], expected.state[part]), part


def sync(machine: Machine, server: ForkServer) -> list[dict[str, Any]]:
    """Run ``mltrain sync`` on the machine; return what it sent."""
    place = Workplace(machine.folder / "place", server, machine.proxy.uri)
    done = place.mltrain("sync", "--json", MLTRAIN_HOME=os.environ["MLTRAIN_HOME"])
    assert done.code == 0, done.out + done.err
    rows: list[dict[str, Any]] = done.json
    return rows


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_is_away_for_a_while_gets_every_point_once_and_every_checkpoint(
    engine: str, machine: Machine, undisturbed: Callable[[str, Machine], Ended]
) -> None:
    expected = undisturbed(engine, machine)
    run_id = ENGINES[engine](None, lambda: (machine.away(), machine.proxy.later(1.0, machine.back)), machine.folder)
    assert machine.proxy.happened["reset"] > 0
    assert_as(expected, machine.ended(run_id))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_does_not_come_back_gets_the_rest_by_sync(
    engine: str, machine: Machine, undisturbed: Callable[[str, Machine], Ended], fork_server: ForkServer
) -> None:
    expected = undisturbed(engine, machine)
    run_id = ENGINES[engine](None, machine.away_for_good, machine.folder)
    machine.back()
    assert [row["run_id"] for row in sync(machine, fork_server)] == [run_id]
    assert_as(expected, machine.ended(run_id))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_is_away_at_the_start_gets_the_run_by_sync(
    engine: str,
    machine: Machine,
    undisturbed: Callable[[str, Machine], Ended],
    fork_server: ForkServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = undisturbed(engine, machine)
    capsys.readouterr()
    machine.away_for_good()
    provisional = ENGINES[engine](None, lambda: None, machine.folder)
    assert engine == "accelerate" or "run_id=" not in capsys.readouterr().out  # that loop prints what it likes
    machine.back()
    (row,) = sync(machine, fork_server)
    assert row["run_id"] != provisional
    assert_as(expected, machine.ended(row["run_id"]))
    assert Origin.read(Address(provisional)).address.location == row["run_id"]


@pytest.mark.parametrize("engine", ENGINES)
def test_another_machine_continues_what_a_killed_one_has_sent_to_the_server(
    engine: str, machine: Machine, undisturbed: Callable[[str, Machine], Ended]
) -> None:
    expected = undisturbed(engine, machine)

    def die() -> None:
        eventually(lambda: open_checkpoints(machine.newest()).all())
        os.kill(os.getpid(), signal.SIGKILL)

    killed(lambda: ENGINES[engine](None, die, machine.folder))
    run_id = machine.newest()
    machine.home("another")
    assert ENGINES[engine](run_id, lambda: None, machine.folder) == run_id
    assert_as(expected, machine.ended(run_id))
