"""Prints the modules that each operation of a checkpoint crosses.

python benchmarks/crossings.py [--json] [--functions]

A profiler (``sys.setprofile``, ``threading.setprofile``) counts in a real training that ``mltrain train`` starts in a process of
its own, with a SQLite tracking store. The training pauses inside each step until its threads are idle. Counted is what runs
between two pauses and does not run in the same thread after steps that neither save nor record anything (after any of four; the
threads that deliver points: after all of them). A save includes the removal of the
checkpoint before it; a resume is what starting from a checkpoint crosses beyond what a new training crosses;
a load is :meth:`mltrain.CheckpointManager.load_latest_checkpoint`. Of a save, ``commit`` is what the two threads of the commit
cross by themselves. Below the table stand the modules of a save by room: what a reader of the commit reads is in ``manager``,
``checkpoint`` and ``store``; the rest are the parts whose state is saved, and the run that records it. The script uses public
names only, so it measures earlier versions too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

PAUSE = 6.0
"""Seconds that a step waits for the threads: longer than a commit, and than the time between two heartbeats."""
POINT, SAVE, STEPS = 5, 4, 13
"""A point every fifth step, a checkpoint every fourth: step 10 records, step 12 saves, steps 1, 2, 6 and 7 do neither.

Step 12 and not step 8, because the first removal of a checkpoint imports what removals need.
"""

PROJECT = f"""
import threading
import torch
import mltrain

class Config(mltrain.Config):
    epochs: int = 1
    device: str = "cpu"
    num_threads: int | None = 1
    log_interval: int = {POINT}
    save_interval: int = 0
    save_every_steps: int = {SAVE}
    checkpoint_mode: str = "latest"

class Step:
    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 2)
        self.optimizer = torch.optim.AdamW(self.net.parameters())
        self.done = 0

    def parts(self):
        return {{"model": self.net, "optimizer": self.optimizer}}

    def __call__(self, batch):
        self.done += 1
        threading.pause(f"step {{self.done}}")
        self.optimizer.zero_grad()
        loss = self.net(batch[0]).square().mean()
        loss.backward()
        self.optimizer.step()
        return {{"loss": loss.detach()}}

def build(config):
    data = torch.utils.data.TensorDataset(torch.ones({STEPS} * 2, 4))
    return mltrain.Task(Step(), mltrain.ResumableLoader(data, 2))
"""

DELIVERING = ("mltrain-journal", "mltrain-sender")
"""Threads that deliver the machine's own figures now and then, as they deliver points."""
COMMITTING = ("mltrain-disk", "mltrain-store")
"""Threads that do nothing but commit checkpoints."""
NAMELESS = ("<module>", "<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
Crossing = tuple[str, str, str]
"""Thread, module, function."""


class Recorder:
    """Records all calls of functions of mltrain, by phase."""

    def __init__(self, package: Path) -> None:
        self.package = str(package)
        self.phase = "start"
        self.seen: dict[str, set[Crossing]] = {}

    def begin(self) -> None:
        """Profile this thread and every later one."""
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; the interpreter calls this."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self.package) and code.co_name not in NAMELESS:
            file = code.co_filename[len(self.package) + 1 :].removesuffix(".py").removesuffix("/__init__")
            thread = threading.current_thread().name.rstrip("0123456789_-")
            self.seen.setdefault(self.phase, set()).add((thread, file.replace("/", "."), code.co_qualname))

    def after(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase

    def after_pause(self, phase: str) -> None:
        """Begin a phase when the threads are idle."""
        time.sleep(PAUSE)
        self.phase = phase


def profiled(part: str, folder: Path, run_id: str) -> None:
    """Train, resume or load here, and write the recorded calls."""
    import mltrain
    from mltrain.cli import main

    recorder = Recorder(Path(mltrain.__file__).parent)
    threading.pause = recorder.after_pause if part == "train" else recorder.after  # type: ignore[attr-defined]  # where the project's step finds it
    recorder.begin()
    if part == "load":
        manager = mltrain.CheckpointManager(run_id)
        recorder.phase = "idle"
        recorder.after_pause("load")
        if manager.load_latest_checkpoint() is None:
            sys.exit("no checkpoint was committed")
        recorder.phase = "end"
        manager.close()
    else:
        given = ["--resume-run", run_id, "epochs=2"] if part == "resume" else [str(folder / "project.py")]
        sys.argv = ["mltrain", "train", *given]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    sys.setprofile(None)
    threading.setprofile(None)
    (folder / f"{part}.json").write_text(json.dumps({name: sorted(found) for name, found in recorder.seen.items()}))


def measured() -> dict[str, list[list[str]]]:
    """Return (thread, module, function) of the calls of each operation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "project.py").write_text(PROJECT)
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLTRAIN_HOME": str(folder / "home"),
            "PYTHONPATH": str(Path.cwd()),
        }
        run_id, parts = "", {}
        for part in ("train", "load", "resume"):
            command = [sys.executable, __file__, "--part", part, "--folder", name, "--run", run_id]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode:
                sys.exit(f"{part} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            if part == "train":
                run_id = done.stdout.split("run_id=")[1].split()[0]
            found = json.loads((folder / f"{part}.json").read_text())
            parts[part] = {phase: {tuple(one) for one in crossings} for phase, crossings in found.items()}
    train, load, resume = parts["train"], parts["load"], parts["resume"]
    plain = [train[f"step {step}"] for step in (1, 2, 6, 7)]
    sometimes, always = set().union(*plain), set.intersection(*plain)
    save = train[f"step {3 * SAVE}"] - sometimes
    found = {
        "save": save,
        "commit": {one for one in save if one[0] in COMMITTING},
        "load": load["load"] - load.get("idle", set()),
        "resume": resume["start"] - train["start"] - sometimes,
        "point": train[f"step {2 * POINT}"] - always - {one for one in sometimes if one[0] not in DELIVERING},
    }
    return {name: [list(one) for one in sorted(crossings)] for name, crossings in found.items()}


def by_room(crossings: list[list[str]]) -> dict[str, list[str]]:
    """Return the crossed modules by room, the largest room first."""
    rooms: dict[str, list[str]] = {}
    for module in sorted({one[1] for one in crossings}):
        room, _, name = module.partition(".")
        rooms.setdefault(room, []).append(name or room)
    return dict(sorted(rooms.items(), key=lambda entry: -len(entry[1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print what was crossed as JSON")
    parser.add_argument("--functions", action="store_true", help="name every function")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        profiled(given.part, given.folder, given.run)
        return
    found = measured()
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'operation':10}{'rooms':>7}{'modules':>9}{'functions':>11}{'threads':>9}")
    for name, crossings in found.items():
        threads, modules = {one[0] for one in crossings}, {one[1] for one in crossings}
        functions = {(one[1], one[2]) for one in crossings}
        rooms = {module.partition(".")[0] for module in modules}
        print(
            f"{name:10}{len(rooms):7}{len(modules):9}{len(functions):11}{len(threads):9}  {', '.join(sorted(threads))}"
        )
    print("\nmodules of a save by room")
    for room, names in by_room(found["save"]).items():
        print(f"{len(names):4}  {room:14}{', '.join(names)}")
    if given.functions:
        for name, crossings in found.items():
            print(f"\n{name}")
            for thread, module, function in crossings:
                print(f"  {thread:20} {module}.{function}")


if __name__ == "__main__":
    main()
