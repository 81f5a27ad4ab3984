"""A reader at a terminal types a page's commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.forkserver import ForkServer
from tests.support.servers import answers, free_port
from tests.support.waiting import eventually
from tests.support.workplace import Done, Workplace

CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_ID = re.compile(r"\b(?:(?!RUN_)([A-Z]+)_)?(?:RUN_)?ID\b")


class Reader:
    """The reader's checkout, an empty store, and the typed commands.

    Args:
        folder: becomes the checkout.
        server: runs ``mltrain`` and ``python`` as children; all other programs are started by their names.
    """

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.workplace = Workplace(folder, server)
        del self.workplace.environment["MLFLOW_EXPERIMENT_ID"]
        self.environment = self.workplace.environment
        self.environment["PATH"] = f"{BIN}{os.pathsep}{self.environment['PATH']}"
        self.environment["MLTRAIN_CACHE"] = str(folder / "cache")
        self.folder = folder
        for name in ("MLproject", "conda.yaml"):
            shutil.copy(CHECKOUT / name, folder)
        shutil.copytree(CHECKOUT / "projects", folder / "projects", ignore=shutil.ignore_patterns("__pycache__"))
        self.typed: dict[str, Done] = {}
        self.port = free_port()
        self._servers: list[subprocess.Popen[bytes]] = []

    def fill(self, command: str, tiny: Mapping[str, str]) -> list[str]:
        """Return the words of a command, with ids, made tiny. Run ids replace ``ID`` and ``NAME_RUN_ID``.

        Args:
            command: as the page has it.
            tiny: by regular expression, what stands in its place; the first match of each counts.
        """
        for pattern, instead in tiny.items():
            command = re.sub(pattern, instead.replace("PORT", str(self.port)), command, count=1)
        return [_ID.sub(lambda match: self.run_id((match[1] or "").lower()), word) for word in shlex.split(command)]

    def run_id(self, of: str = "") -> str:
        """Return the run id that the newest matching command printed."""
        for command, done in reversed(self.typed.items()):
            stages = dict(re.findall(r"^\[\d/\d\] (\w+): .*\n  run (\w+);", done.out, re.MULTILINE))
            found = re.findall(r"^run_id=(\w+)", done.out, re.MULTILINE)
            if of in stages:
                return str(stages[of])
            if found and of in command:
                return str(found[-1])
        raise AssertionError(f"no command with {of!r} printed run_id=: {list(self.typed)}")

    def type(self, command: str, tiny: Mapping[str, str], *, code: int = 0) -> Done:
        """Run a command of the page until it ends.

        Args:
            command: as the page has it.
            tiny: see :meth:`fill`.
            code: that it has to exit with.
        """
        words = self.fill(command, tiny)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]  # the address of the store, of which there is one here
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.environment[name] = value
            done = Done(0, "", "")
        elif words[0] in ("mltrain", "python"):
            done = self.workplace.mltrain(*words[words[0] == "mltrain" :], timeout=200)
        else:
            ended = subprocess.run(
                words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=200
            )
            done = Done(ended.returncode, ended.stdout, ended.stderr)
        assert done.code == code, f"{shlex.join(words)}\n{done.out[-4000:]}\n{done.err[-4000:]}"
        self.typed[command] = done
        return done

    def interrupt(self, command: str, tiny: Mapping[str, str], after: str, codes: tuple[int, ...]) -> Done:
        """Run a command; press Ctrl+C once it has printed ``text``. It has to exit with one of the codes."""
        words = self.fill(command, tiny)
        started = self.workplace.start(*words[words[0] == "mltrain" :])
        started.until(after, timeout=120)
        started.child.kill(signal.SIGINT)
        done = started.wait()
        assert done.code in codes, f"{shlex.join(words)}\n{done.out[-4000:]}\n{done.err[-4000:]}"
        self.typed[command] = done
        return done

    def on_two_machines(self, command: str, tiny: Mapping[str, str]) -> None:
        """Run a command twice at once, each with one process."""
        words = self.fill(command.replace("--nproc-per-node 4", "--nproc-per-node 1"), tiny)
        words = [word.replace("HOST:29500", f"127.0.0.1:{self.port}") for word in words]
        started = [
            subprocess.Popen(
                words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(2)
        ]
        ended = [one.communicate(timeout=200) for one in started]
        assert [one.returncode for one in started] == [0, 0], f"{shlex.join(words)}\n{ended}"
        self.typed[command] = Done(0, "".join(out for out, _ in ended), "")

    def serve(self, command: str, tiny: Mapping[str, str], path: str) -> None:
        """Start a server, and wait until a path answers. It runs until :meth:`leave`."""
        words = self.fill(command, tiny)
        with (self.folder / "server.log").open("ab") as log:
            server = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._servers.append(server)
        page = f"http://127.0.0.1:{self.port}{path}"
        eventually(lambda: answers(server, page, self.folder / "server.log"), f"the start of {shlex.join(words)}")
        self.typed[command] = Done(0, "", "")

    def leave(self) -> None:
        """End the servers."""
        for server in self._servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
