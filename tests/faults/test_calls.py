"""The instrument of the kills: it sees every call, in order, of every thread and library, and kills before the one meant."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.calls import CALLS as NUMBERS
from tests.faults.calls import Call, Calls
from tests.support.forkserver import CALLS, ForkServer
from tests.support.workplace import Started

pytestmark = pytest.mark.faults


def observed(folder: Path, forks: ForkServer, fatal: int = 0) -> tuple[int, Calls]:
    folder.mkdir()

    def matters(call: Call) -> bool:
        return call.target.startswith((f"{folder}/made", f"{folder}/db", "socket:"))

    calls = Calls(matters, fatal)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        words = ["--module", "tests.faults.known_calls", str(folder), str(listening.getsockname()[1])]
        environment = {**os.environ, CALLS: calls.socket}
        child = forks.start(words, folder, environment, folder / "out", folder / "err")
        done = Started(child, folder / "out", folder / "err").wait(60)
        calls.finish()
    assert "done" in done.out or fatal, done.err
    return done.code, calls


def test_every_call_of_every_process_is_seen(tmp_path: Path, fork_server: ForkServer) -> None:
    code, calls = observed(tmp_path / "x", fork_server)
    assert code == 0
    seen = [f"{call.name} {Path(call.target).name.partition(':')[0]}" for call in calls.made]
    python = ["mkdir made", "openat a", "write a", "fsync a", "rename b", "unlink b", "rmdir made"]
    assert seen[:7] == python
    assert seen[-2:] == ["connect socket", "sendto socket"]
    by_sqlite = set(seen[7:-2])
    assert by_sqlite >= {"openat db", "openat db-journal", "pwrite64 db", "pwrite64 db-journal", "unlink db-journal"}
    assert by_sqlite & {"fsync db", "fdatasync db"}


def test_it_dies_before_the_call_that_is_meant(tmp_path: Path, fork_server: ForkServer) -> None:
    for fatal, left in ((1, set[str]()), (3, {"made", "made/a"}), (6, {"made", "made/b"}), (7, {"made"})):
        folder = tmp_path / str(fatal)
        code, calls = observed(folder, fork_server, fatal)
        assert code == -signal.SIGKILL
        assert calls.killed_before is not None
        assert len(calls.made) == fatal - 1
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} - {"out", "err"} == left


if os.environ.get("MLTRAIN_SWEEP") == "full":  # needs strace

    def test_strace_sees_the_same_calls(tmp_path: Path, fork_server: ForkServer) -> None:
        """An independent witness counts what this instrument counts."""
        _, calls = observed(tmp_path / "x", fork_server)
        folder, trace = tmp_path / "y", tmp_path / "trace"
        folder.mkdir()
        script = "import sys; from tests.faults.known_calls import main; main(sys.argv[1:])"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            subprocess.run(
                [
                    *("strace", "-f", "-y", "-o", str(trace), "-e", f"trace={','.join(sorted(set(NUMBERS.values())))}"),
                    *(sys.executable, "-c", script, str(folder), str(listening.getsockname()[1])),
                ],
                check=True,
                capture_output=True,
                cwd=Path(__file__).parent.parent.parent,
                timeout=60,
            )
        counted = 0
        for line in trace.read_text().splitlines():
            of_files = f"{folder}/made" in line or f"{folder}/db" in line
            reading = "O_RDONLY" in line and "O_CREAT" not in line
            to_the_server = "<socket:" in line or "<TCP:" in line
            counted += "resumed>" not in line and ((of_files and not reading) or to_the_server)
        assert counted == len(calls.made)
