"""Disturbs a training at random moments until it is done. Then an oracle compares it with an undisturbed one.

How much is decided by the environment: ``MLTRAIN_TRIALS`` (a small sample without it) and ``MLTRAIN_SEED``. A failure names
the seed and what was done, and leaves the folder.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mltrain.testing import differences
from tests.support.workplace import Done, Workplace

SEED = int(os.environ.get("MLTRAIN_SEED", "0"))


def trials(sample: int) -> int:
    """How many trials to do: so many in CI, as many as the environment says in a sweep."""
    return int(os.environ.get("MLTRAIN_TRIALS", sample))


@dataclass
class Reference:
    """An undisturbed run and its duration."""

    workplace: Workplace
    run_id: str
    seconds: float

    @classmethod
    def of(cls, workplace: Workplace, *words: str) -> "Reference":
        for _ in range(2):  # the first one is slower, and moments drawn from its length would often come too late
            began = time.monotonic()
            done = workplace.mltrain("train", "tiny.py", *words)
            assert done.code == 0, done.err
        return cls(workplace, done.run_id, time.monotonic() - began)

    def assert_same(self, workplace: Workplace, run_id: str, story: str) -> None:
        """Compare newest checkpoint, metric points, status and list of checkpoints."""
        found = list(differences(self.workplace.weights(self.run_id), workplace.weights(run_id)))
        assert found == [], story
        assert workplace.points(run_id) == self.workplace.points(self.run_id), story
        assert workplace.status(run_id) == "FINISHED", story
        verified = workplace.mltrain("verify", run_id)
        assert verified.code == 0, f"{story}\n{verified.out}{verified.err}"


@dataclass
class Victim:
    """One training, disturbed until it is done."""

    workplace: Workplace
    words: tuple[str, ...]
    run_id: str | None = None
    story: list[str] = field(default_factory=list)
    """What happened, one line an attempt."""

    def attempt(self, number: int, after: float) -> Done:
        """Start or resume; send a signal after ``after`` seconds."""
        resume = ("--resume-run", self.run_id) if self.run_id is not None else self.words
        started = self.workplace.start("train", "tiny.py", *resume)
        ended_before = started.child.ended.wait(after)
        if not ended_before:
            started.child.kill(number)
        done = started.wait(60)
        ids = [line.removeprefix("run_id=") for line in done.out.splitlines() if line.startswith("run_id=")]
        self.run_id = self.run_id or (ids[0] if ids else None)
        sent = "nothing" if ended_before else signal.Signals(number).name
        self.story.append(f"{sent} after {after:.3f} s: exit code {done.code}: {done.err.strip()[-300:]}")
        return done

    def told(self) -> str:
        return f"seed {SEED}, {self.workplace.folder}, run {self.run_id}:\n" + "\n".join(self.story)


def moments(random_numbers: random.Random, longest: float) -> Iterator[float]:
    """Yield moments that are spread evenly over an attempt."""
    while True:
        yield random_numbers.uniform(0, longest)


def command_line(workplace: Workplace, *words: str, ignored: signal.Signals | None = None) -> "subprocess.Popen[bytes]":
    """Start the program in a new interpreter. ``ignored`` is ignored from the start, as with ``nohup``."""
    with (workplace.folder / "out").open("wb") as out, (workplace.folder / "err").open("wb") as err:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "mltrain"), *words],
            cwd=workplace.folder,
            env=workplace.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=(lambda: signal.signal(ignored, signal.SIG_IGN)) if ignored is not None else None,
        )
