"""One attempt of :func:`mltrain.testing.assert_survives_kills`, in a process of its own."""

import sys

from mltrain.testing.killing import main

if __name__ == "__main__":
    main(*sys.argv[1:])
