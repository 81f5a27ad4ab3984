"""A function in a forked child that is killed: what pytest has imported need not be imported again."""

import os
import signal
from collections.abc import Callable
from typing import Any


def killed(function: Callable[[], Any]) -> None:
    """Fork, and run a function that kills its process."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(3)  # it has outlived its own kill
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL
