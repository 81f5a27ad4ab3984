"""Finds a run's page in MLflow's UI, and serves it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from mltrain.errors import TrackingError, UsageError
from mltrain.run.listing import newest
from mltrain.run.naming import full_id
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.pages import page_of, page_of_experiment

_HOST = "127.0.0.1"
_START_SECONDS, _END_SECONDS = 120.0, 15.0
_POLL_SECONDS = 0.2


@contextmanager
def pages(
    server: TrackingClient, run_id: str | None, port: int | None
) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Serve MLflow's UI; yield an address and the server process.

    The server ends with the context.

    Args:
        server: the tracking store.
        run_id: the run to show. If ``None``, the experiment of mltrain's newest run.
        port: the port to listen on. If ``None``, a free one.

    Yields:
        The address, and the process; ``None`` if the tracking server serves the UI itself.

    Raises:
        RunNotFound: there is no such run.
        UsageError: the port is in use, or not needed.
        TrackingError: MLflow's server does not start.
    """
    run = server.run(full_id(server, run_id)) if run_id is not None else newest(server)
    if server.uri.startswith(("http://", "https://")):
        if port is not None:
            raise UsageError(f"{server.shown} serves MLflow's UI itself. Expected no --port.")
        yield _page(server.shown, run, run_id), None
        return
    port = _usable(port)
    address = f"http://{_HOST}:{port}"
    # The server ends with this process, even if that is killed.
    attached = [sys.executable, "-P", "-m", "mltrain.commands.attached"]
    command = [*attached, sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", server.uri]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*command, "--host", _HOST, "--port", str(port), "--workers", "1"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl+C is for this process
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        try:
            if not _answers(address, process):
                output.seek(0)
                last = output.read().decode(errors="replace").strip().splitlines()[-3:]
                raise TrackingError(
                    f"MLflow's server did not start at {address}: {' '.join(last) or 'it printed nothing'}"
                )
            yield _page(address, run, run_id), process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _page(address: str, run: Any, run_id: str | None) -> str:
    if run is None or run_id is None:
        return page_of_experiment(address, run.info.experiment_id if run is not None else None)
    return page_of(address, run.info.experiment_id, run.info.run_id)


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the server's first answer; return whether it came."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{address}/health", timeout=5):  # noqa: S310 - an address of this machine
                return True
        except (URLError, OSError):
            time.sleep(_POLL_SECONDS)
    return False


def _usable(port: int | None) -> int:
    """Return the given port, if free, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--port {port} cannot be used: {error}. Expected a free port. Try: without --port"
            ) from None
        return int(probe.getsockname()[1])
