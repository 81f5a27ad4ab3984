"""FAULTS B2-B4: single calls of the disk that fail or are slow under a training.

``MLTRAIN_SWEEP=full`` lets every single write of a training fail, and not only a few of them.
"""

import os
import random
from collections.abc import Iterator

import pytest

from tests.support.equality import identical
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

FAILING = """
import errno, os
from tiny import *
from tiny import Faulty

class Config(Config):
    nth: int = 0
    times: int = 1
    call: str = "write"

plain, calls = Faulty.__call__, []

def step(self, batch):
    if not calls:  # from the first step on: what fails before it is another matter
        arm(self.config)
    return plain(self, batch)

def arm(config):
    original = getattr(os, config.call)
    calls.append(0)
    def failing(*arguments):
        calls[0] += 1
        if config.nth <= calls[0] < config.nth + config.times:
            with open("fired", "a") as file:
                file.write("x")
            raise OSError(errno.ENOSPC if config.call == "write" else errno.EIO, "made to fail")
        return original(*arguments)
    setattr(os, config.call, failing)

Faulty.__call__ = step
"""


def failing_at(workplace: Workplace, call: str, nth: int, times: int) -> tuple[bool, str]:
    """Train with one call of the disk failing; return whether it did fail, and the run."""
    fired = workplace.folder / "fired"
    fired.unlink(missing_ok=True)
    done = workplace.mltrain("train", "failing.py", f"call={call}", f"nth={nth}", f"times={times}")
    assert done.code == 0, (nth, done.err)
    assert "Traceback" not in done.err
    happened = fired.exists()
    assert ("could not be written" in done.err) == happened, done.err
    workplace.intact(done.run_id)
    rows = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert rows[-1]["epoch"] == 4
    return happened, done.run_id


@pytest.fixture
def failing(workplace: Workplace) -> Workplace:
    (workplace.folder / "failing.py").write_text(FAILING, encoding="utf-8")
    return workplace


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_whichever_call_fails_the_training_ends_with_all_its_checkpoints(
    call: str, failing: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    reference, run_id = undisturbed
    expected, points = reference.weights(run_id), reference.points(run_id)
    if os.environ.get("MLTRAIN_SWEEP") == "full":
        numbers: Iterator[int] = iter(range(1, 1000))
    else:
        numbers = iter(sorted(random.Random(int(os.environ.get("MLTRAIN_SEED", "1"))).sample(range(1, 16), 2)))
    count = 0
    for nth in numbers:
        happened, found = failing_at(failing, call, nth, times=1 + nth % 5)
        assert identical(failing.weights(found), expected), f"after a failing {call} number {nth}"
        assert failing.points(found) == points
        if not happened:
            break
        count += 1
    assert count >= 2
    print(f"{count} calls of {call} failed, one after the other")


SLOW = """
import os, threading, time
from tiny import *
from tiny import Faulty

plain, flush, under_way = Faulty.__call__, os.fsync, threading.Event()
FIRST_STEPS = (6, 12, 18)  # of an epoch after one that was saved

def slow(descriptor):
    if threading.current_thread().name.startswith("mltrain-disk"):
        under_way.set()
        time.sleep(0.5)
        under_way.clear()
    return flush(descriptor)

def step(self, batch):
    os.fsync = slow  # from the first step on
    if self.done in FIRST_STEPS:
        assert under_way.wait(60), "this step began only after the checkpoint was written"
    return plain(self, batch)

Faulty.__call__ = step
"""


def test_where_each_flush_takes_half_a_second_the_training_goes_on_meanwhile(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    reference, run_id = undisturbed
    (workplace.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    done = workplace.mltrain("train", "slow.py")
    assert done.code == 0, done.err
    assert "could not" not in done.err
    workplace.intact(done.run_id)
    assert identical(workplace.weights(done.run_id), reference.weights(run_id))
    assert workplace.points(done.run_id) == reference.points(run_id)
