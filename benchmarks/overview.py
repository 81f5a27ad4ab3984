"""How long ``mltrain runs`` and ``mltrain compare`` take over many runs.

``python -m benchmarks.overview [--runs 1000] [--epochs 20] [--server [--workers 4]]`` trains one small run, copies it in the
database and among the artifacts, each copy with a learning rate of its own, and times the commands as a user starts them.
``--server`` asks an MLflow server for the same runs. The first row is the same list by MLflow's own client, which prints
nothing of it.
"""

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mltrain.checkpoint.manifest import FILE_NAME, FileEntry, Manifest
from mltrain.tracking.tags import AT_BEST_TAG
from tests.support.servers import TrackingServer

TABLES = ("tags", "params", "latest_metrics", "metrics")
PROJECT = Path(__file__).parents[1] / "tests" / "support" / "tiny.py"


MLFLOW = """
import mlflow
client, runs, token = mlflow.MlflowClient(), [], None
experiments = [one.experiment_id for one in client.search_experiments()]
while token != "":
    page = client.search_runs(experiments, max_results=1000, page_token=token)
    runs, token = [*runs, *page], page.token or ""
print(len(runs))
"""


def mltrain(folder: Path, *words: str, uri: str) -> tuple[float, str]:
    """Run a command of mltrain in a folder; return its seconds and its output."""
    return timed(folder, "-m", "mltrain", *words, uri=uri)


def timed(folder: Path, *words: str, uri: str) -> tuple[float, str]:
    """Run Python in a folder; return its seconds and its output."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLTRAIN_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:80]} failed: {done.stderr[-2000:]}")
    return seconds, done.stdout


def copied(database: Path, run_id: str, runs: int) -> list[str]:
    """Copy a run of a database up to ``runs``; return all ids."""
    ids = [run_id]
    with closing(sqlite3.connect(database)) as opened, opened:
        columns = {
            table: [row[1] for row in opened.execute(f"PRAGMA table_info({table})")] for table in ("runs", *TABLES)
        }
        (place,) = opened.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
        root = next(database.parent.glob(f"*/*/{run_id}/artifacts"))
        for number in range(1, runs):
            ids.append(uuid.uuid4().hex)
            for table, names in columns.items():
                kept = [name for name in names if name not in ("run_uuid", "artifact_uri")]
                changed = {"run_uuid": ids[-1]}
                if table == "runs":
                    changed["artifact_uri"] = place.replace(run_id, ids[-1])
                into = ", ".join([*kept, *changed])
                marks = ", ".join([*kept, *"?" * len(changed)])
                opened.execute(
                    f"INSERT INTO {table} ({into}) SELECT {marks} FROM {table} WHERE run_uuid = ?",
                    [*changed.values(), run_id],
                )
            rate = number / 1000
            opened.execute("UPDATE params SET value = ? WHERE run_uuid = ? AND key = 'lr'", [str(rate), ids[-1]])
            for table in ("metrics", "latest_metrics"):
                opened.execute(f"UPDATE {table} SET value = value + ? WHERE run_uuid = ?", [rate, ids[-1]])
            opened.execute(
                "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?",
                [changed_values(opened, run_id, rate), ids[-1], AT_BEST_TAG],
            )
            shutil.copytree(root, root.parents[1] / ids[-1] / "artifacts", copy_function=os.link)
            for file in (root.parents[1] / ids[-1]).glob(f"artifacts/checkpoints/*/{FILE_NAME}"):
                manifest = Manifest.from_json(file.read_bytes())
                changed_files = {"params.json": changed_config(file.with_name("params.json"), rate)}
                measured = {key: value + rate for key, value in manifest.metrics.items()}
                update = {"run_id": ids[-1], "metrics": measured, "files": manifest.files | changed_files}
                file.unlink()
                file.write_bytes(manifest.model_copy(update=update).to_json())
    return ids


def changed_values(database: sqlite3.Connection, run_id: str, rate: float) -> str:
    """Return the metrics of the best checkpoint, with ``rate`` added."""
    wanted = "SELECT value FROM tags WHERE run_uuid = ? AND key = ?"
    content = json.loads(database.execute(wanted, [run_id, AT_BEST_TAG]).fetchone()[0])
    metrics = {key: value + rate for key, value in content["metrics"].items()}
    return json.dumps(content | {"metrics": metrics})


def changed_config(file: Path, rate: float) -> FileEntry:
    """Give the configuration of a checkpoint another learning rate; return what its manifest says of the file."""
    content = json.dumps(json.loads(file.read_bytes()) | {"lr": rate}).encode()
    file.unlink()
    file.write_bytes(content)
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def measure(folder: Path, ids: Sequence[str], uri: str, rounds: int) -> None:
    """Print a row for each command: the quickest of some rounds."""
    count = len(ids)
    commands = {
        "mltrain --version": ["--version"],
        "mltrain runs": ["runs"],
        f"mltrain runs --most {count}": ["runs", "--most", str(count)],
        "mltrain runs --where 'val/loss > 0'": ["runs", "--where", "val/loss > 0"],
        "mltrain runs --sort val/loss": ["runs", "--sort", "val/loss"],
        **{
            f"mltrain compare of {number}{' '.join(['', *more])}": ["compare", *ids[:number], *more]
            for number in sorted({3, 30, count})
            for more in ([], ["--html", "page.html"])
        },
    }
    calls = {title: ("-m", "mltrain", *words) for title, words in commands.items()}
    for title, words in {f"MLflow's client, {count} runs": ("-c", MLFLOW), **calls}.items():
        seconds = min(timed(folder, *words, uri=uri)[0] for _ in range(rounds))
        print(f"| {title} | {seconds:.2f} s |", flush=True)


def main() -> None:
    """Make the runs, and time the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--workers", type=int, default=4, help="Of the server.")
    parser.add_argument(
        "--folder", type=Path, help="Keep the runs there, or use those that are there; not for --server."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        server = TrackingServer(folder, workers=given.workers) if given.server else None
        database = folder / "mlflow.db"
        uri = f"sqlite:///{database}"
        if server is not None:
            server.start()
            uri = server.uri
        try:
            listed = folder / "ids.txt"
            if not listed.exists():
                shutil.copy(PROJECT, folder)
                words = ("train", "tiny.py", f"epochs={given.epochs}")
                said = mltrain(folder, *words, uri=uri)[1]
                run_id = next(line[7:] for line in said.splitlines() if line.startswith("run_id="))
                ids = copied(database, run_id, given.runs)
                listed.write_text("\n".join(ids))
            measure(folder, listed.read_text().split(), uri, given.rounds)
        finally:
            if server is not None:
                server.kill()


if __name__ == "__main__":
    main()
