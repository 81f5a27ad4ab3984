"""What the machine allows: mltrain beside the bare work of its checkpoints, done by no code of mltrain.

python -m benchmarks.limits [--rounds 3] [--write docs/performance.md]

The loop of :mod:`benchmarks.peers` in two ways, in turn, each in a fresh process with one torch thread, in which the same network
is trained alone right before and after: with a copy of the state at the same moments as there, which a second thread hashes with
SHA-256, writes into one plain file and flushes with one ``fsync``; and with mltrain in a SQLite database and a folder of this
machine, which records three metrics a step as well. The first way against the loop alone shows what a second core, the memory
and the disk take from the training; the second against the first shows what is mltrain's own.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_loops import LIMITS
from benchmarks.peer_stores import Stores
from benchmarks.peers import LARGE, OURS, calibrated, spread, write

(FLOOR,) = LIMITS
BEGIN, END = "<!-- limits: begin -->", "<!-- limits: end -->"
ROWS: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("wall, × bare loop", lambda one: one["wall"] / one["steps"] / one["bare"]),
    ("CPU seconds beyond the bare loop's", lambda one: one["cpu"] - one["steps"] * one["bare_cpu"]),
    ("steps alone, × bare loop", lambda one: (one["wall"] - one["end"]) / one["steps"] / one["bare"]),
    ("stall of later checkpoints, × copy", lambda one: statistics.median(one["later"])),
    ("last step to everything there, s", lambda one: one["end"]),
)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--seconds", type=float, default=0.2, help="of a step")
    asked.add_argument("--write", type=Path, help="a file with markers that the table goes between")
    given = asked.parse_args()
    torch.set_num_threads(1)
    work, ways = calibrated(LARGE, given.seconds), (FLOOR, OURS[0])
    loads = [os.getloadavg()[0]]
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="mltrain-limits-") as place:
            stores, found = Stores(Path(place)), {}
            for name in ways[number % 2 :] + ways[: number % 2]:
                found[name] = stores.measure(name, work, "local")[1]
                stores.forget()
        rounds.append(found)
        loads.append(os.getloadavg()[0])
    lines = [
        f"`python -m benchmarks.limits`: {given.rounds} rounds, medians (least … most), load average {min(loads):.1f} to "
        f"{max(loads):.1f}, its own included.\n",
        f"| | {FLOOR} | mltrain | mltrain, × {FLOOR} |\n| --- | --- | --- | --- |",
    ]
    for title, value in ROWS:
        floor = [value(found[FLOOR]) for found in rounds]
        ours = [value(found[OURS[0]]) for found in rounds]
        ratios = [a / b for a, b in zip(ours, floor, strict=True)]
        lines.append(f"| {title} | {spread(floor)} | {spread(ours)} | {spread(ratios)} |")
    print("\n".join(lines))
    if given.write is not None:
        write("\n".join(lines), given.write, BEGIN, END)


if __name__ == "__main__":
    main()
