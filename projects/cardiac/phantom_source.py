"""Phantom patients as a source of cases, and as files::

python -m projects.cardiac.phantom_source --to FOLDER --cases 12
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from projects.cardiac.layout import THICKNESS_MM, write_case
from projects.cardiac.phantom import Case, Phantom
from projects.cardiac.raw import LateEnhancement, RawCase, Truth

PIXEL_MM = 1.5


@dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """A number of phantom patients; an evenly spread share of them has an infarct."""

    phantom: Phantom
    cases: int
    infarcted: float = 2 / 3
    seed: int = 0

    def names(self) -> tuple[str, ...]:
        """Return ``phantom_000``, ``phantom_001`` and so on."""
        return tuple(f"phantom_{number:03d}" for number in range(self.cases))

    def drawn(self, name: str) -> Case:
        """Draw one patient."""
        number = int(name.rpartition("_")[2])
        return self.phantom.case(self.seed * 100_003 + number, infarcted=self._infarcted(number))

    def case(self, name: str) -> RawCase:
        """Draw one patient as a case read from files."""
        drawn = self.drawn(name)
        pieces = drawn.slices
        return RawCase(
            name=name,
            cine=np.stack([piece.cine for piece in pieces]),
            spacing=(PIXEL_MM, PIXEL_MM),
            affine=np.diag([PIXEL_MM, PIXEL_MM, THICKNESS_MM, 1.0]),
            thickness=THICKNESS_MM,
            myocardium=np.stack([piece.myocardium[0] for piece in pieces]),
            septum=drawn.septum,
            infarcted=any(piece.lge_infarct.any() for piece in pieces),
            late=LateEnhancement(
                image=np.stack([piece.lge for piece in pieces]),
                spacing=(PIXEL_MM, PIXEL_MM),
                myocardium=np.stack([piece.lge_myocardium for piece in pieces]),
                infarct=np.stack([piece.lge_infarct for piece in pieces]),
            ),
            truth=Truth(
                displacement=np.stack([piece.displacement for piece in pieces]),
                myocardium=np.stack([piece.myocardium for piece in pieces]),
                infarct=np.stack([piece.infarct for piece in pieces]),
            ),
        )

    def _infarcted(self, number: int) -> bool:
        return int((number + 1) * self.infarcted + 1e-9) > int(number * self.infarcted + 1e-9)


def main(arguments: list[str] | None = None) -> int:
    """Write phantoms in the layout of :mod:`projects.cardiac.layout`."""
    parser = argparse.ArgumentParser(prog="python -m projects.cardiac.phantom_source", description=main.__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder to write to")
    parser.add_argument("--cases", type=int, default=12, help="number of patients (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the patients (default 0)")
    parser.add_argument("--chronic", action="store_true", help="old infarcts, with a thin wall")
    given = parser.parse_args(arguments)
    source = PhantomSource(phantom=Phantom(chronic=given.chronic), cases=given.cases, seed=given.seed)
    for name in source.names():
        write_case(source.drawn(name), given.to, name, PIXEL_MM)
    print(f"{given.cases} phantoms are in {given.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
