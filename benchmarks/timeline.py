"""Prints the calls of checkpoint, end and resume. Each with its thread, its begin and its duration.

python -m benchmarks.timeline [--store local|server] [--layers 8] [--least 0.01]

Trains a transformer for a few steps with three checkpoints, in a process of its own, and prints every call of interest from the
step of the second one on, and from the last step on; then resumes the run by its id. Times are in seconds; ``cpu`` is that of
the calling thread, so a call with little of it waits: for a disk, a server, another thread, or a processor that other programs
have. Beside it stands what cannot be avoided: the plain write of the same bytes with one fsync, and the plain transfer to and
from the server with one, two and four connections.
"""

import argparse
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_training import Training, Work

CALLS = """
mltrain.manager:CheckpointManager.close mltrain.manager:CheckpointManager.wait
mltrain.manager:CheckpointManager.load_latest_checkpoint mltrain.manager:CheckpointManager._begin
mltrain.checkpoint.committer:Committer._commit_to_disk mltrain.checkpoint.committer:Committer._commit_to_store
mltrain.checkpoint.committer:refuse_nonfinite mltrain.checkpoint.staging:write_file mltrain.checkpoint.staging:rename_folder
mltrain.checkpoint.snapshot:HostBuffers.copy mltrain.checkpoint.committer:publish
mltrain.checkpoint.pruner:Pruner.prune mltrain.checkpoint.store:CheckpointStore.survey
mltrain.checkpoint.store:CheckpointStore.fetch mltrain.checkpoint.verified_files:VerifiedFiles.read
mltrain.checkpoint.codec:decode mltrain.checkpoint.reader:CheckpointReader.all mltrain.checkpoint.notes:Notes.read
mltrain.store.remote:RemoteArtifacts.upload_all mltrain.store.remote:RemoteArtifacts.read
mltrain.store.remote:RemoteArtifacts.entries mltrain.store.local:LocalArtifacts.read
mltrain.run.opening:open_run mltrain.run.tracked:TrackedRun.continue_exactly_after
mltrain.ownership.lease:Lease.holds mltrain.ownership.lease:Lease.end mltrain.ownership.lease:Lease.close
mltrain.ownership.lease:Hold.release
mltrain.delivery.outbox:Outbox.stop_recording mltrain.delivery.outbox:Outbox.pending mltrain.delivery.sender:Sender.drain
mltrain.delivery.sending_process:SenderProcess.close mltrain.delivery.journal:Journal.close mltrain.delivery.journal:Journal.flush
mltrain.delivery.system_metrics:SystemMonitor.close
mltrain.run.ending:Ending._deliver mltrain.run.ending:Ending._status_is_set mltrain.run.ending:conclude
mltrain.run.record:Record.write_json mltrain.run.record:Record.queue_attempts
mltrain.tracking.client:TrackingClient.tried
"""


class Timeline:
    """Notes calls: name, thread, begin, end, CPU seconds."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float, float, float]] = []

    def watch(self) -> None:
        """Record the calls of interest until this process ends."""
        for place in CALLS.split():
            module, _, path = place.partition(":")
            *owners, name = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            found = vars(owner)[name]
            of_class = isinstance(found, classmethod)
            noted = self.noted(path, found.__func__ if of_class else found)
            setattr(owner, name, classmethod(noted) if of_class else noted)

    def noted(self, path: str, function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                of = [
                    getattr(a, "__name__", "") if callable(a) else str(a)
                    for a in arguments
                    if isinstance(a, str | Path) or callable(a)
                ]
                call = f"{path} {of[0][-40:] if of else ''}", threading.current_thread().name
                self.calls.append((*call, began, time.perf_counter(), time.thread_time() - cpu))

        return wrapper

    def show(self, title: str, since: float, least: float, until: float = math.inf) -> None:
        """Print the calls between two times of a least duration."""
        print(f"\n{title}\n  from      to    took     cpu  thread                call")
        for name, thread, began, ended, cpu in sorted(self.calls, key=lambda call: call[2]):
            if ended > since and began < until and ended - began >= least:
                print(
                    f"{began - since:6.3f}  {ended - since:6.3f}  {ended - began:6.3f}  {cpu:6.3f}  {thread:<20.20}  {name}"
                )


def end(work: Work, least: float) -> None:
    """Train in this process; print the timeline of the end."""
    from mltrain import CheckpointManager, open_run

    line, training = Timeline(), Training.of(work)
    line.watch()
    run = open_run()
    print("RUN", run.id, flush=True)
    saved = []
    with CheckpointManager(run, max_to_keep=5) as manager:
        for step, metrics, due in training.steps():
            if step == 1:
                manager.prepare(training.state(step))
            run.log_metrics(metrics, step)
            if due:
                saved.append(last := training.clock.ended[-1])
                manager.save(training.state(step), step=step)
    line.show("A checkpoint under the training, from its step on", saved[1], least, saved[2])
    print(f"\nfrom the last step to everything there: {time.perf_counter() - last:.3f} s")
    line.show("The end, from the last step on", last, least)


def resume(work: Work, least: float) -> None:
    """Resume in this process; print the timeline to the first step."""
    import mlflow  # noqa: F401 - measured is what comes after the imports

    from mltrain import CheckpointManager, open_run

    line, training = Timeline(), Training.of(work)
    line.watch()
    began = time.perf_counter()
    run = open_run(work.run)
    with CheckpointManager(run, max_to_keep=5) as manager:
        state = manager.load_latest_checkpoint()
        assert state is not None
        run.continue_exactly_after(training.load(state))
        print(f"a resume, after the imports: {time.perf_counter() - began:.3f} s")
        line.show("A resume, until the first step", began, least)


def plain(uri: str, folder: Path, size: int) -> None:
    """Print the seconds of a plain write and transfer."""
    content = os.urandom(1 << 20) * (size >> 20)
    began = time.perf_counter()
    with (folder / "plain").open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    print(f"\nplain write and fsync of {len(content) / 1e6:.0f} MB: {time.perf_counter() - began:.3f} s")
    if uri.startswith("http"):
        for what, connections, seconds in transfers(uri, content):
            print(f"plain, {what} over {connections} connections: {seconds:.3f} s", flush=True)


def transfers(uri: str, content: bytes) -> Iterator[tuple[str, int, float]]:
    """Time transfers to and from a tracking server's artifacts. Yields the direction, the number of connections and the
    seconds.
    """
    import requests

    for connections in (1, 2, 4):
        part = len(content) // connections
        place = f"{uri}/api/2.0/mlflow-artifacts/artifacts/plain/{connections}"

        def put(number: int, place: str = place, part: int = part) -> None:
            requests.put(f"{place}/{number}", data=content[:part], timeout=600).raise_for_status()

        def get(number: int, place: str = place, part: int = part) -> None:
            with requests.get(f"{place}/{number}", stream=True, timeout=600) as answer:
                assert sum(len(piece) for piece in answer.iter_content(1 << 20)) == part

        for what, transfer in (("sent", put), ("received", get)):
            began = time.perf_counter()
            with ThreadPoolExecutor(connections) as pool:
                list(pool.map(transfer, range(connections)))
            yield what, connections, time.perf_counter() - began


@contextmanager
def environment(store: str, folder: Path) -> Iterator[str]:
    """Open a tracking store in a folder for this process."""
    from tests.support.database import fresh_database
    from tests.support.servers import TrackingServer

    os.environ["MLTRAIN_HOME"] = f"{folder}/home"
    server = TrackingServer(folder) if store == "server" else None
    if server is None:
        fresh_database(folder / "mlflow.db", folder / "artifacts")
    else:
        server.start()
    os.environ["MLFLOW_TRACKING_URI"] = uri = server.uri if server is not None else f"sqlite:///{folder / 'mlflow.db'}"
    try:
        yield uri
    finally:
        if server is not None:
            server.kill()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--store", choices=("local", "server"), default="local")
    asked.add_argument("--layers", type=int, default=8)
    asked.add_argument("--least", type=float, default=0.01, help="seconds of the shortest call that is shown")
    asked.add_argument("--child", help=argparse.SUPPRESS)
    given = asked.parse_args()
    torch.set_num_threads(1)
    if given.child is not None:
        part, _, text = given.child.partition(" ")
        (end if part == "end" else resume)(Work(**json.loads(text)), given.least)
        return
    work = Work(layers=given.layers, width=512, rows=2, steps=24, every=8)
    with tempfile.TemporaryDirectory(prefix="mltrain-timeline-") as place, environment(given.store, Path(place)) as uri:

        def child(part: str, work: Work) -> str:
            words = [sys.executable, "-m", "benchmarks.timeline", "--store", given.store, "--least", str(given.least)]
            words += ["--child", f"{part} {json.dumps(asdict(work))}"]
            done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            print(done.stdout.partition("\n")[2] if part == "end" else done.stdout, flush=True)
            return done.stdout

        run = child("end", work).split()[1]
        os.environ["MLTRAIN_HOME"] = f"{place}/another"
        child("resume", replace(work, run=run))
        plain(uri, Path(place), 12 * sum(p.numel() for p in Training.of(work).net.parameters()))


if __name__ == "__main__":
    main()
