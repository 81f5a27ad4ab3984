"""``python -m mltrain`` is the same program as ``mltrain``."""

from mltrain.cli import main

main()
