"""``python -m tests.gpu.launch nccl|gloo COMMAND``: a rank on a machine with one CUDA device.

NCCL wants a device for each rank, so it is tried with a single rank, which mltrain by itself would train without ranks. With
gloo several ranks share the device.
"""

import sys
from datetime import timedelta

import torch.distributed as dist

import mltrain.commands.ranks as ranks


def main() -> None:
    backend = sys.argv.pop(1)
    if backend == "gloo":
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    else:
        ranks.is_one_of_several = lambda environment: True
    from mltrain.cli import main as command

    command()


if __name__ == "__main__":
    main()
