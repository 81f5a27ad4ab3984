"""Forks a process with torch and MLflow for every command. So thousands of real kills take minutes.

The protocol is a line of JSON each way: ``{"id", "argv", "cwd", "env", "out", "err"}`` in, ``{"id", "pid"}`` and
``{"id", "code"}`` out. A child is a full process of its own; what happens to it happens for real.
"""

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

CALLS = "MLTRAIN_TESTS_CALLS"
"""The variable that names the socket of who counts a command's system calls; see ``tests/faults/calls.py``."""


class Child:
    """A command in a forked process."""

    def __init__(self) -> None:
        self.pid = 0
        self.code: int | None = None
        self.started = threading.Event()
        self.ended = threading.Event()

    def wait(self, timeout: float) -> int:
        if not self.ended.wait(timeout):
            self.kill(signal.SIGKILL)
            raise TimeoutError(f"the command still ran after {timeout} s")
        assert self.code is not None
        return self.code

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)


class ForkServer:
    """The client's side; ``modules`` are imported before the first command."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        assert self._process.stdout is not None
        self._process.stdout.readline()  # ready
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self, argv: list[str], cwd: Path, env: dict[str, str], out: Path, err: Path) -> Child:
        child = Child()
        with self._lock:
            number = len(self._children)
            self._children[number] = child
            assert self._process.stdin is not None
            request = {"id": number, "argv": argv, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        assert child.started.wait(120), "the command did not start"
        return child

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)  # a machine may be busy
        self._listener.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            child = self._children[said["id"]]
            if "pid" in said:
                child.pid = said["pid"]
                child.started.set()
            else:
                child.code = said["code"]
                child.ended.set()


def serve() -> None:
    for name in (
        "alembic",
        "boto3",
        "matplotlib.figure",
        "mlflow.store.artifact.local_artifact_repo",
        "mlflow.store.artifact.mlflow_artifacts_repo",
        "mlflow.store.artifact.s3_artifact_repo",
        "mlflow.store.tracking.sqlalchemy_store",
        "mltrain.cli.display",
        "mltrain.commands.evaluate",
        "mltrain.commands.pull",
        "mltrain.commands.prune",
        "mltrain.run.listing",
        "PIL.Image",
        "torch._dynamo",
        "torchmetrics",
        *sys.argv[1:],
    ):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    replies.write("ready\n")
    running: dict[int, int] = {}
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.01 if running else 0.2)
        if ready:
            got = os.read(0, 65536)
            if not got:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return
            buffer += got
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    run(request)
                running[pid] = request["id"]
                replies.write(json.dumps({"id": request["id"], "pid": pid}) + "\n")
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            number = running.pop(pid)
            replies.write(json.dumps({"id": number, "code": os.waitstatus_to_exitcode(status)}) + "\n")


def forget_mlflow() -> None:
    """Let the command begin as a fresh process does. That one asks a server without MLflow."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        del sys.modules[name]


def run(request: dict[str, Any]) -> None:
    """Become the command. Never returns."""
    code, begun = 1, False
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for number, target in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        sys.argv = ["mltrain", *request["argv"]]
        sys.path.insert(0, request["cwd"])
        if CALLS in os.environ:
            from tests.faults.calls import hand_over

            hand_over(os.environ.pop(CALLS))
        if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
            forget_mlflow()
        begun = True
        if request["argv"][:1] == ["--module"]:
            importlib.import_module(request["argv"][1]).main(request["argv"][2:])
        elif request["argv"][:2] == ["python", "-m"]:
            sys.argv = request["argv"][2:]
            runpy.run_module(request["argv"][2], run_name="__main__", alter_sys=True)
        elif request["argv"][:1] == ["python"]:
            sys.argv = request["argv"][1:]
            sys.path[0] = str(Path(request["argv"][1]).resolve().parent)
            runpy.run_path(request["argv"][1], run_name="__main__")
        else:
            from mltrain.cli import main

            main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process
        if isinstance(error, KeyboardInterrupt) and not begun:  # an interpreter that is interrupted ends like this
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
