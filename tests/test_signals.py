"""Requests to stop."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mltrain.signals import STOPPING, StopRequest
from tests.support.waiting import eventually, let_pass

ALL = [name for name in STOPPING if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Check that every test restores the handlers."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in ALL}
    yield
    assert {name: signal.getsignal(getattr(signal, name)) for name in ALL} == before


def send(*names: str) -> None:
    for name in names:
        signal.raise_signal(getattr(signal, name))


def in_steps(**options: Any) -> StopRequest:
    stop = StopRequest(**options)
    stop.finish_steps()
    return stop


@pytest.mark.parametrize("name", ALL)
def test_every_signal_is_a_request_that_lets_the_step_finish(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with in_steps() as stop:
        assert not stop.requested
        send(name)
        assert stop.requested
    assert (stop.reason, stop.hurry.is_set()) == (name, False)
    assert f"{name}: finishing this step and saving" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_before_the_first_step_a_request_ends_the_preparation(name: str, code: int) -> None:
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt) as raised:
            send(name)
        assert getattr(raised.value, "exit_code", 130) == code
        send(name, "SIGTERM")  # the clean-up is not disturbed by more
    assert (stop.reason, stop.exit_code) == (name, code)


@pytest.mark.parametrize("sent", [["SIGINT", "SIGTERM"], ["SIGTERM", "SIGINT"], ["SIGINT", "SIGINT"], ["SIGINT"] * 9])
def test_what_comes_within_a_second_is_one_request(sent: list[str]) -> None:
    with in_steps() as stop:
        send(*sent)
    assert (stop.reason, stop.hurry.is_set()) == (sent[0], False)


def test_a_second_interrupt_later_does_not_wait_for_the_upload(capfd: pytest.CaptureFixture[str]) -> None:
    with in_steps(same_request_seconds=0.02) as stop:
        send("SIGINT", "SIGTERM")
        let_pass(0.05)
        assert not stop.hurry.is_set()
        send("SIGINT")
        assert stop.hurry.is_set()
    assert "once more to leave at once" in capfd.readouterr().err


def test_a_second_terminate_is_not_impatience() -> None:
    with in_steps(same_request_seconds=0.02) as stop:
        for _ in range(4):
            send("SIGTERM")
            let_pass(0.05)
    assert not stop.hurry.is_set()


def test_a_third_interrupt_leaves_at_once() -> None:
    script = (
        "import signal, time\n"
        "from mltrain import StopRequest\n"
        "with StopRequest(same_request_seconds=0.02) as stop:\n"
        "    stop.finish_steps()\n"
        "    for number in (1, 2, 3):\n"
        "        print(number, flush=True)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        time.sleep(0.05)\n"
        "    print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (130, ["1", "2", "3"])


def test_a_request_to_save_and_go_on_is_no_request_to_stop() -> None:
    with in_steps(on_usr1="checkpoint") as stop:
        send("SIGUSR1")
        assert (stop.requested, stop.checkpoint_wanted) == (False, True)
        send("SIGTERM")
        assert stop.requested


def test_what_usr1_means_may_be_decided_later() -> None:
    with in_steps() as stop:
        stop.on_usr1 = "checkpoint"
        send("SIGUSR1")
        assert not stop.requested


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with in_steps() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            send("SIGHUP")
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_after_a_mistake() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_no_handlers_are_installed() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere() -> None:
        with in_steps() as stop:
            seen.append(signal.getsignal(signal.SIGTERM))
            stop.request("a button")
            seen.append(stop.reason)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before, "a button"]


def test_the_first_reason_stays() -> None:
    stop = in_steps()
    stop.request("a button")
    stop.request("another")
    assert stop.reason == "a button"


def test_the_death_of_the_launcher_is_a_request() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with in_steps(launcher_pid=launcher.pid, poll_seconds=0.01) as stop:
        assert not stop.requested
        launcher.kill()
        launcher.wait()
        assert launcher.stdin is not None
        launcher.stdin.close()
        eventually(lambda: stop.requested, "a request to stop")
    assert stop.reason == "the launcher's death"


def test_nobody_watches_when_the_block_is_left() -> None:
    with in_steps(launcher_pid=os.getpid(), poll_seconds=0.01):
        assert any(thread.name == "mltrain-launcher" for thread in threading.enumerate())
    for thread in threading.enumerate():
        if thread.name == "mltrain-launcher":
            thread.join(30)
    assert not any(thread.name == "mltrain-launcher" for thread in threading.enumerate())


def test_a_closed_stream_for_errors_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as stream:  # noqa: PTH123 - what a closed standard error looks like
        pass
    monkeypatch.setattr(sys, "__stderr__", stream)
    with in_steps() as stop:
        send("SIGTERM")
    assert stop.requested


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no pseudo terminals")
def test_on_a_terminal_the_message_replaces_the_line_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as seen, os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "__stderr__", terminal)
        with in_steps():
            send("SIGINT")
        shown = seen.read(1000)
    assert shown.startswith(b"\r\x1b[2KSIGINT: finishing this step")


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="Windows has no SIGCHLD")
def test_workers_that_are_killed_at_exit_raise_nothing() -> None:
    code = (
        "import torch\n"
        "from mltrain.signals import StopRequest\n"
        "class Items:\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index): return torch.zeros(1)\n"
        "with StopRequest():\n"
        "    batches = iter(torch.utils.data.DataLoader(Items(), num_workers=2))\n"
        "    next(batches)\n"
        "    raise ValueError('the last line')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: the last line"
