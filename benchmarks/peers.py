"""Compares mltrain with five peers from start to last byte. Each trains, records and saves with MLflow.

python -m benchmarks.peers [--rounds 3] [--peers NAME ...] [--measures training resume short long] [--stores server local]
    [--release CHECKOUT]  (an earlier release as one more peer, "mltrain, earlier")

Every measurement is a fresh process with one torch thread; the peers take turns, round by round, in the same stores: an MLflow
server with one worker on this machine, and a SQLite database with artifacts on the local disk. Each process trains the same
network alone for a quarter of the steps right before and right after, and "× bare loop" compares with the mean of these: the
same loop differs by a third between two processes, and much less within one (``--peers "bare loop"`` shows how much).
``training``: a transformer of 25 million parameters (with both moments of AdamW about 303 MB of state), 32 steps of about
0.2 s, a checkpoint every 8, three metrics a step; then ``resume`` by the run's id in an empty folder, from the server.
``short``: 600 steps of about 1 ms, three metrics a step, no checkpoint, ended after 5 s; the peers once, mltrain in each
round. ``long``: 20,000 of them, by mltrain alone, because every peer takes minutes. Three rounds take some 25 minutes.
The table is printed and goes between the markers in ``docs/performance.md``
(``--write FILE``); every measurement is appended to ``--results`` at once, and ``--from`` makes the table of such a file again.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_loops import EARLIER, LOOPS
from benchmarks.peer_stores import Failed, Stores
from benchmarks.peer_training import Training, Work

BARE, LATE = "bare loop", "mltrain, late_copy"
OURS = ("mltrain", LATE, EARLIER)
PEERS = tuple(name for name in LOOPS if name not in (BARE, EARLIER))
LARGE = Work(layers=8, width=512, rows=1, steps=32, every=8)
SMALL = Work(layers=0, width=64, rows=1, steps=600, most_seconds=5.0)
LONG = 20_000
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
MEASURES = ("training", "resume", "short", "long")
PACKAGES = ("torch", "mlflow", "lightning", "transformers", "accelerate")


def calibrated(work: Work, seconds: float) -> Work:
    """Return the work whose step takes ``seconds`` on this machine."""
    training = Training.of(replace(work, rows=4))
    batch = torch.randn(4, 48, work.width)

    def step_seconds(rows: int) -> float:
        batch = torch.randn(rows, 48, work.width)
        found = []
        for _ in range(6):
            began = time.perf_counter()
            training.step(batch)
            found.append(time.perf_counter() - began)
        return min(found[1:])

    training.step(batch)
    few, many = step_seconds(1), step_seconds(9)
    each = max((many - few) / 8, 1e-6)
    return replace(work, rows=max(1, round(1 + (seconds - few) / each)))


def measurements(given: argparse.Namespace, large: Work, small: Work) -> Iterator[dict[str, Any]]:
    """Measure everything asked for, round by round."""
    for number in range(given.rounds):
        # Each round begins with another peer, so that what changes on the machine weighs on none in particular.
        at = number % len(given.peers)
        peers = [*given.peers[at:], *given.peers[:at]]
        with (
            tempfile.TemporaryDirectory(prefix="mltrain-peers-") as place,
            Stores(Path(place), given.earlier_release).open() as stores,
        ):
            for store in given.stores:
                for name in peers:
                    # What takes twenty times as long need not be measured exactly.
                    short = {"short"} if number and name not in (BARE, *OURS) else set()
                    for measure, found in measured(stores, name, store, {*given.measures} - short, large, small):
                        yield {"round": number, "store": store, "peer": name, "measure": measure, **found}


def measured(
    stores: Stores, name: str, store: str, measures: Collection[str], large: Work, small: Work
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the chosen measurements of one peer in one store. A measurement that fails is printed and left out."""
    resumes = store == "server" and "resume" in measures and name != BARE
    try:
        if "training" in measures or resumes:
            run, found = stores.measure(name, large, store)
            yield "training", found
            if resumes:
                yield "resume", stores.measure(name, replace(large, run=run), store)[1]
        stores.forget()
        if "short" in measures and name != LATE:
            yield "short", stores.measure(name, small, store)[1]
        if "long" in measures and name in (BARE, OURS[0], EARLIER):
            steps = LONG * small.steps // SMALL.steps
            yield "long", stores.measure(name, replace(small, steps=steps, most_seconds=300.0), store)[1]
    except (Failed, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", flush=True)
        stores.forget()


Value = Callable[[dict[str, Any]], list[float]]
"""What a row shows of a measurement."""


def wall(found: dict[str, Any]) -> list[float]:
    return [found["wall"] / found["steps"] / found["bare"]]


def cpu(found: dict[str, Any]) -> list[float]:
    return [found["cpu"] / found["steps"] / found["bare_cpu"]]


def rate(found: dict[str, Any]) -> list[float]:
    return [found["rate"] * found["bare"]]


ROWS: tuple[tuple[str, str, str, Value], ...] = (
    ("wall, × bare loop, server", "training", "server", wall),
    ("wall, × bare loop, local", "training", "local", wall),
    ("stall of the first checkpoint, × copy", "training", "local", lambda found: found["first"]),
    ("stall of later ones, × copy", "training", "local", lambda found: found["later"]),
    ("stall and the step after it, × copy", "training", "local", lambda found: found["held"]),
    ("last step to everything there, s, server", "training", "server", lambda found: [found["end"]]),
    ("last step to everything there, s, local", "training", "local", lambda found: [found["end"]]),
    ("the same, files flushed, s, local", "training", "local", lambda found: [found["flushed"]]),
    ("CPU, × bare loop, server", "training", "server", cpu),
    ("CPU, × bare loop, local", "training", "local", cpu),
    ("resume by id, s after imports", "resume", "server", lambda found: [found["resumed"]]),
    ("resume by id, s from the start of Python", "resume", "server", lambda found: [found["process"]]),
    ("600 steps of 1 ms, × bare loop, server", "short", "server", rate),
    ("600 steps of 1 ms, × bare loop, local", "short", "local", rate),
    ("20,000 steps of 1 ms, × bare loop, server", "long", "server", rate),
    ("20,000 steps of 1 ms, × bare loop, local", "long", "local", rate),
)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the table of what was measured: medians, with the least and the most."""
    peers = [name for name in LOOPS if any(one["peer"] == name for one in found)]
    lines = [f"| | {' | '.join(peers)} |", f"| --- |{' --- |' * len(peers)}"]
    for title, measure, store, value in ROWS:
        cells = []
        for name in peers:
            ours = [one for one in found if (one["peer"], one["measure"], one["store"]) == (name, measure, store)]
            values = [number for one in ours for number in value(one)]
            cells.append(spread(values) if values else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    def short(value: float) -> str:
        return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"

    low, high = min(values), max(values)
    return short(statistics.median(values)) + (f" ({short(low)} … {short(high)})" if len(values) > 1 else "")


def circumstances(found: Sequence[dict[str, Any]]) -> str:
    """Describe machine, versions, load and sizes in a sentence."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    loads = [one["load"] for one in found]
    trained = [one for one in found if one["measure"] == "training"]
    sizes = ""
    if trained:
        step, copy = (statistics.median(one[key] for one in trained) for key in ("bare", "copy"))
        drift = statistics.median(abs(one["beside"][0] / one["beside"][1] - 1) for one in trained)
        sizes = f" State {trained[0]['state'] / 1e6:.0f} MB; a step {step:.3f} s, a copy of the state {copy:.3f} s (medians). "
        sizes += f"A step alone before a measurement and after it differ by {100 * drift:.0f} % (median)."
    return (
        f"`python -m benchmarks.peers`: {max(one['round'] for one in found) + 1} rounds, medians (least … most), on "
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), one torch thread, Python "
        f"{platform.python_version()}, {versions}. Load average before each measurement {min(loads):.1f} to {max(loads):.1f}, "
        f"its own included.{sizes}"
    )


def write(text: str, file: Path, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between the markers of a file."""
    before, _, rest = file.read_text().partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument(
        "--peers",
        nargs="+",
        choices=(BARE, *PEERS),
        default=list(PEERS),
        metavar="NAME",
        help=", ".join((BARE, *PEERS)),
    )
    asked.add_argument(
        "--release",
        type=Path,
        dest="earlier_release",
        metavar="CHECKOUT",
        help="a checkout of an earlier release: one more peer",
    )
    asked.add_argument("--measures", nargs="+", choices=MEASURES)
    asked.add_argument("--stores", nargs="+", choices=("server", "local"), default=["server", "local"])
    asked.add_argument(
        "--tiny", action="store_true", help="a tiny network and few steps: shows only that everything runs"
    )
    asked.add_argument("--results", type=Path, help="a file of JSON lines that every measurement is appended to")
    asked.add_argument("--from", type=Path, dest="earlier", help="measure nothing; make the table of such a file")
    asked.add_argument("--write", type=Path, help="a file with markers that the table goes between")
    given = asked.parse_args()
    given.measures = given.measures or list(MEASURES)
    if given.earlier_release is not None:
        given.peers = list(dict.fromkeys([*given.peers, EARLIER]))
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    if given.earlier is not None:
        found = [json.loads(line) for line in given.earlier.read_text().splitlines()]
    else:
        large = replace(LARGE, layers=1, width=64, steps=8, every=2) if given.tiny else calibrated(LARGE, 0.2)
        small = replace(SMALL, steps=20) if given.tiny else calibrated(SMALL, 0.001)
        began, load = time.perf_counter(), os.getloadavg()[0]
        for one in measurements(given, large, small):
            found.append({**one, "load": load})
            if given.write is not None:
                write(f"{circumstances(found)}\n\n{table(found)}", given.write)
            load = os.getloadavg()[0]
            if given.results is not None:
                with given.results.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
            shown = {k: round(v, 3) for k, v in one.items() if k in ("wall", "end", "resumed", "rate", "process")}
            print(
                f"{time.perf_counter() - began:6.0f} s  {one['measure']} {one['store']} {one['peer']}: {shown}",
                flush=True,
            )
    text = f"{circumstances(found)}\n\n{table(found)}"
    print(f"\n{text}")
    if given.write is not None:
        write(text, given.write)


if __name__ == "__main__":
    main()
