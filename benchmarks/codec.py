"""Writing and reading a state, durable each time: our codec and staging, torch.save, safetensors.save_file, in turn.

python benchmarks/codec.py [megabytes]
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mltrain.checkpoint.codec import decode
from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.publishing import stage
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.store.local import LocalArtifacts

ROUNDS = 9


def state(megabytes: int) -> dict[str, Any]:
    """A model and the two moments of its optimizer."""
    layers = max(1, megabytes // 12)
    weights = {f"layer{i}.weight": torch.randn(1024, 1024) for i in range(layers)}
    moments = {i: {"exp_avg": w * 0, "exp_avg_sq": w * w} for i, w in enumerate(weights.values())}
    return {"model": weights, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}}


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def peak(call: Callable[[], Any]) -> int:
    """Return the bytes by which a call raises resident memory. Its peak counts, with the result (Linux)."""

    def kilobytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    result = call()
    rise = kilobytes("VmHWM") - before
    del result
    return 1024 * rise


def main(megabytes: int) -> None:
    torch.set_num_threads(1)
    parts, buffers = state(megabytes), HostBuffers()
    flat = {f"{k}": v for k, v in parts["model"].items()}
    flat |= {f"{i}.{k}": v for i, one in parts["optimizer"]["state"].items() for k, v in one.items()}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        store = CheckpointStore("0" * 32, LocalArtifacts(root / "artifacts"), Spool(root / "staging"))
        written: list[Manifest] = []

        def ours() -> None:
            blank = Manifest(
                run_id="0" * 32, id=CheckpointId(attempt=1, step=len(written)), kind="step", epoch=0, parent=None,
                parts=tuple(parts), files={}, created=now(),
            )  # fmt: skip
            written.append(stage(store, snapshot(parts, buffers), blank, {}))

        def theirs_torch() -> None:
            torch.save(parts, root / "theirs.pt")
            durable(root / "theirs.pt")

        def theirs_safetensors() -> None:
            save_file(flat, root / "theirs.safetensors")
            durable(root / "theirs.safetensors")

        rows: dict[str, list[float]] = {}
        for round_ in range(ROUNDS + 1):
            figures = {
                "write: mltrain (copied, hashed, fsynced)": timed(ours),
                "write: torch.save + fsync": timed(theirs_torch),
                "write: safetensors.save_file + fsync": timed(theirs_safetensors),
                "read: mltrain (verified)": timed(lambda: decode(store.fetch(written[-1]))),
                "read: torch.load": timed(lambda: torch.load(root / "theirs.pt", weights_only=True)),
                "read: safetensors.load_file": timed(lambda: load_file(root / "theirs.safetensors")),
            }
            for name, value in figures.items():
                if round_:
                    rows.setdefault(name, []).append(value)
            if round_ == ROUNDS:
                memory = {
                    "mltrain": peak(lambda: decode(store.fetch(written[-1]))),
                    "torch.load": peak(lambda: torch.load(root / "theirs.pt", weights_only=True)),
                }
            store.remove(written[-1].id)
        size = written[-1].size / 1e6
        for name, rise in memory.items():
            print(f"memory while reading, {name}: {rise / written[-1].size:.2f} states")
        print(f"{size:.0f} MB, {ROUNDS} rounds; ratio to torch in the same round: median (least … most)")
        for name, values in rows.items():
            peer = rows["write: torch.save + fsync" if name.startswith("write") else "read: torch.load"]
            ratios = [a / b for a, b in zip(values, peer, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
            print(
                f"{name:<42} {statistics.median(values):7.3f} s  {size / statistics.median(values):6.0f} MB/s  {spread}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
