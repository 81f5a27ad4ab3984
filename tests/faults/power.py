"""FAULTS B1 for real: power cuts on an ext4 of its own. Whatever was said to be committed is readable afterwards.

python -m tests.faults.power [cuts] [seed]

An image is mounted through a loop device; a process saves checkpoints there and says so of each; at a random moment the
filesystem is shut down without writing its journal (``EXT4_IOC_SHUTDOWN``): from that instant nothing reaches the disk any
more, as when the power fails. Then it is mounted anew and read. Needs root and a loop device. It is a program and not a test,
because few machines that run tests allow it; that everything is flushed before it gets its name is tested everywhere, by
``tests/checkpoint/test_spool.py``.
"""

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.support.runs import FolderRun, state_at
from tests.support.waiting import let_pass

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
WITHOUT_THE_JOURNAL = 2


def saving(folder: Path, attempt: int, first: int, said: int) -> None:
    """Save until the disk fails; report commits through a pipe. Never returns."""
    torch.set_num_threads(1)
    try:
        run = FolderRun(folder, ordinal=attempt)
        manager = run.manager(max_to_keep=3)
        manager.when_committed(
            lambda manifest, best, store: os.write(said, struct.pack("<II", attempt, manifest.step)) and None
        )
        manager.load_latest_checkpoint()
        for epoch in range(first, first + 10**6):
            manager.save_epoch_checkpoint(state_at(epoch, ballast=torch.full((2**15,), float(epoch))), epoch)
    finally:
        os._exit(0)


def cut(place: Path, image: Path, chance: random.Random, attempt: int, first: int) -> tuple[set[tuple[int, int]], int]:
    """Save, cut the power, and return reported and readable commits."""
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    listening, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listening)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        saving(place / "run", attempt, first, said)
    os.close(said)
    head = os.read(listening, 8)  # the cut comes after at least one commit
    let_pass(chance.uniform(0, 0.25))
    disk = os.open(place, os.O_RDONLY)
    fcntl.ioctl(disk, SHUTDOWN, struct.pack("<I", WITHOUT_THE_JOURNAL))
    os.close(disk)
    let_pass(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = head
    while piece := os.read(listening, 2**16):
        told += piece
    os.close(listening)
    subprocess.run(["umount", str(place)], check=True)
    committed = {(a, s) for a, s in struct.iter_unpack("<II", told)}
    return committed, max(step for _, step in committed)


def readable(place: Path, image: Path, attempt: int, newest: int) -> tuple[int, list[str]]:
    """Mount the disk; count intact checkpoints and list the faults."""
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        manager = FolderRun(place / "run", ordinal=attempt).manager(max_to_keep=3)
        wrong = []
        manifests = manager.store.manifests(damaged=lambda identity, error: wrong.append(f"{identity}: {error}"))
        for manifest in manifests:
            wrong += [f"{manifest.name}: {problem}" for problem in manager.store.problems(manifest)]
        steps = [manifest.step for manifest in manifests]
        if newest not in steps and not any(step > newest for step in steps):
            wrong.append(f"step {newest} was said to be committed, and there is only {steps}")
        state = manager.load_latest_checkpoint()
        if state is None or not state["ballast"].eq(float(state["epoch"])).all():
            wrong.append("the newest state is not what was saved")
        manager.wait(60)
        manager.abandon()
        return len(manifests), wrong
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main(cuts: int, seed: int) -> int:
    chance, bad, first, commits, intact = random.Random(seed), 0, 1, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        image, place = Path(folder) / "disk", Path(folder) / "mounted"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(96 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        for number in range(cuts):
            committed, newest = cut(place, image, chance, 2 * number + 1, first)
            count, wrong = readable(place, image, 2 * number + 2, newest)
            commits, intact, first = commits + len(committed), intact + count, newest + 10
            if wrong:
                bad += 1
                print(f"cut {number}: {'; '.join(wrong)}")
    print(f"{cuts} power cuts after {commits} commits: {intact} checkpoints read, {bad} cuts with something unreadable")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
