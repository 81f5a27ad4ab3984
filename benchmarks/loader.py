"""ResumableLoader beside a plain DataLoader, in one run: CPU seconds of ours over CPU seconds of theirs, epoch by epoch.

python benchmarks/loader.py
"""

import statistics
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mltrain.data import ResumableLoader

ROUNDS = 41


class Items(Dataset[Any]):
    """Items of ``size`` floats and a label."""

    def __init__(self, count: int, *size: int) -> None:
        self.inputs = torch.randn(count, *size)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.inputs[index], index


def seconds(loader: Any) -> float:
    began = time.process_time()
    for _ in loader:
        pass
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'items':<28} {'batch':>5} {'median':>7} {'quartiles':>15} {'theirs, µs a batch':>19} {'ours':>5}")
    for name, data in (("16 floats", Items(6400, 16)), ("images 3x96x96", Items(640, 3, 96, 96))):
        for batch in (16, 32, 128):
            ours, theirs = ResumableLoader(data, batch), DataLoader(data, batch, shuffle=True)
            pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)][1:]
            ratios = sorted(a / b for a, b in pairs)
            low, median, high = statistics.quantiles(ratios, n=4)
            mine, each = (statistics.median(pair[who] for pair in pairs) / len(theirs) * 1e6 for who in (0, 1))
            print(f"{name:<28} {batch:>5} {median:>7.3f} {f'{low:.3f} … {high:.3f}':>15} {each:>19.0f} {mine:>5.0f}")


if __name__ == "__main__":
    main()
