from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from projects.cardiac import chain, preparation, prepared
from projects.cardiac.phantom import Case, Phantom
from projects.cardiac.phantom_source import PhantomSource
from projects.cardiac.prepared import Cohort


@dataclass(frozen=True)
class Study:
    """Six prepared phantoms and briefly trained networks."""

    prepared: Path
    motion: Path
    registration: Path

    def keys(self) -> dict[str, Path]:
        return {
            "prepared": self.prepared,
            "motion_weights": self.motion,
            "registration_weights": self.registration,
        }


@pytest.fixture(scope="session")
def source() -> PhantomSource:
    return PhantomSource(phantom=Phantom(frames=6, slices=1), cases=6)


@pytest.fixture(scope="session")
def infarcted() -> Case:
    """A phantom without noise, for comparable frames."""
    return Phantom(frames=8, slices=1, noise=(0.0, 0.0)).case(5, infarcted=True)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    overrides = {"cases": 6, "slices": 1, "frames": 6, "side": 64, "num_threads": 1}
    preparation.prepare(preparation.Config.load(overrides=overrides), folder / "prepared")
    given = {"prepared": folder / "prepared", "num_threads": 1}
    chain.train("motion", None, folder / "motion", epochs=6, **given)
    chain.train("registration", None, folder / "registration", epochs=6, **given)
    return Study(folder / "prepared", folder / "motion", folder / "registration")


@pytest.fixture(scope="session")
def cohort(study: Study) -> Cohort:
    return prepared.read(study.prepared)
