"""What an adapter costs and saves: each engine with the adapter of mltrain, and with its own MLflow logger and checkpoints.

python -m benchmarks.adapters [steps] [rounds] [engine ...]

Every contestant trains the same network (4 MB of weights; with both moments of AdamW 12 MB of state) on one torch thread, in a
process of its own, by turns, with a tracking database and artifacts on the local disk. It records three metrics a step and saves
every 20 steps. Measured are

* steps a second, from the first step to the last;
* stall: by how much the time between two steps is longer where a checkpoint is saved, median over the saves;
* bytes in the store when the training has ended, in MB;
* after a SIGKILL within the training and a resume as the engine documents it: points that are there twice, and that are missing.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.adapter_loops import EVERY, METRICS

ENGINES = ("lightning", "huggingface", "accelerate", "ignite")


class Course:
    """The folder and tracking store of one training."""

    def __init__(self, engine: str, kind: str, steps: int) -> None:
        self.words = [engine, kind, str(steps)]
        self.folder = Path(tempfile.mkdtemp(prefix=f"mltrain-{engine}-"))
        self.run_id = ""
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "MLTRAIN_HOME": str(self.folder / "home"),
            "MLFLOW_EXPERIMENT_NAME": "benchmark",
            "OMP_NUM_THREADS": "1",
        }
        from mlflow import MlflowClient

        self.client = MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        self.client.create_experiment("benchmark", artifact_location=str(self.folder / "mlruns"))

    def train(self, kill_at: int = 0) -> None:
        command = [sys.executable, "-m", "benchmarks.adapter_loops", *self.words, str(kill_at), self.run_id]
        done = subprocess.run(
            command, check=False, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
        )
        lines = [line.removeprefix("run_id=") for line in done.stdout.splitlines() if line.startswith("run_id=")]
        if done.returncode not in (0, -signal.SIGKILL) or not lines:
            raise RuntimeError(f"{self.words}: {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
        self.run_id = self.run_id or lines[0]

    def facts(self) -> dict[str, float]:
        return dict(json.loads((self.folder / "facts.json").read_text()))

    def stored(self) -> float:
        """Return the megabytes of all artifacts, LoggedModels included."""
        files = [file for file in (self.folder / "mlruns").rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files) / 1e6

    def points(self, steps: int) -> tuple[int, int]:
        """Count the duplicate points and the steps without a point."""
        keys = ("loss", "grad_norm", "learning_rate") if self.words[0] == "huggingface" else METRICS
        doubled = missing = 0
        for key in keys:
            found = [point.step for point in self.client.get_metric_history(self.run_id, key)]
            doubled += len(found) - len(set(found))
            missing += steps - len(set(found))
        return doubled, missing


def rows(steps: int, rounds: int, engines: Sequence[str]) -> Iterator[str]:
    kinds = ("without", "with")
    measured: dict[tuple[str, str], list[dict[str, float]]] = {(e, k): [] for e in engines for k in kinds}
    stored: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for one in measured:
            course = Course(*one, steps)
            course.train()
            measured[one].append(course.facts())
            stored[one] = course.stored()
    for one, facts in measured.items():
        course = Course(*one, steps)
        course.train(steps // 2 + EVERY // 2 + 3)
        course.train()
        doubled, missing = course.points(steps)
        rate, stall = (statistics.median(fact[name] for fact in facts) for name in ("rate", "stall"))
        yield f"| {one[0]} | {one[1]} | {rate:.0f} | {stall:.1f} | {stored[one]:.0f} | {doubled} | {missing} |"


def main() -> None:
    numbers_given = [int(word) for word in sys.argv[1:3]]
    steps, rounds = (*numbers_given, *(200, 3)[len(numbers_given) :])
    before = os.getloadavg()
    print("| engine | adapter | steps/s | stall, ms | MB in the store | doubled points | missing points |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(steps, rounds, sys.argv[3:] or ENGINES):
        print(row, flush=True)
    print(f"\n{steps} steps, {rounds} rounds; load {before[0]:.1f} before, {os.getloadavg()[0]:.1f} after.")


if __name__ == "__main__":
    main()
