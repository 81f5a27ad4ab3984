"""Runs a program only while this process's parent lives::

python -m mltrain.commands.attached PROGRAM ARGUMENTS

The parent holds the other end of the standard input, which the system closes when the parent ends, also after SIGKILL.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_GRACE_SECONDS = 10.0


def main(command: Sequence[str]) -> None:
    """Run a program until it or the parent ends."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def follow() -> None:
        os._exit(max(process.wait(), 0) or 1)

    threading.Thread(target=follow, daemon=True).start()
    sys.stdin.buffer.read()
    _end(process, signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _end(process, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Signal a program and, but on Windows, its children."""
    if sys.platform == "win32":
        process.terminate()
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
