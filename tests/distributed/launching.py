"""``python -m tests.distributed.launching CODE`` runs Python code on two ranks."""

import sys

from mltrain.distributed import torchrun
from mltrain.signals import STOPPING


def main(arguments: list[str]) -> None:
    sys.exit(torchrun.run(2, [sys.executable, "-c", arguments[0]], STOPPING))


if __name__ == "__main__":
    main(sys.argv[1:])
