"""Runs a benchmark of an earlier version beside today's, in turn, with the same environment.

python benchmarks/versions.py REVISION [--rounds 2] SCRIPT [ARGUMENT ...]

REVISION is a commit or tag that has ``benchmarks/SCRIPT`` too; version 0.1 is 5831108. Each version runs its own script, because
their internals differ, in the same environment, and the order of the two changes from round to round. Printed is what the scripts
print, after the load average at their start.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def checked_out(revision: str, folder: Path) -> Path:
    """Write the package, its benchmarks and the helpers of its tests at a revision into a folder, and return it."""
    wanted = ("mltrain", "benchmarks", "tests")
    packed = subprocess.run(["git", "archive", revision, *wanted], cwd=HERE, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("script", help="name of a file in benchmarks/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        versions = [(given.revision, checked_out(given.revision, Path(name))), ("now", HERE)]
        for turn in range(given.rounds):
            for version, root in versions if turn % 2 == 0 else reversed(versions):
                print(f"== {version}, round {turn + 1}, load average {os.getloadavg()[0]:.1f}", flush=True)
                done = subprocess.run(
                    [sys.executable, "-m", f"benchmarks.{Path(given.script).stem}", *given.arguments],
                    cwd=root,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])},
                    check=False,
                )
                if done.returncode:
                    sys.exit(f"{version} ended with {done.returncode}")


if __name__ == "__main__":
    main()
