"""Types every documented command, starting with an empty store."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import walks
from tests.support.forkserver import ForkServer
from tests.support.pages import DOCS, blocks, commands
from tests.support.reader import Reader
from tests.support.walks import NOT_TYPED, PAGES, SMALL, WALKS


@pytest.fixture(scope="module")
def warm() -> Iterator[ForkServer]:
    """Import the packages of the systems once for all commands."""
    server = ForkServer(
        *("monai.inferers", "monai.losses", "monai.networks.nets", "nibabel", "pandas", "skops.io", "torchdiffeq"),
        *("scipy.signal", "skimage.metrics", "skimage.registration", "sklearn.ensemble", "sklearn.linear_model"),
    )
    yield server
    server.close()


@pytest.fixture
def reader(tmp_path: Path, warm: ForkServer) -> Iterator[Reader]:
    found = Reader(tmp_path / "checkout", warm)
    yield found
    found.leave()


@pytest.mark.parametrize(
    "page", [pytest.param(name, marks=[pytest.mark.slow] if walk.slow else []) for name, walk in WALKS.items()]
)
def test_every_command_of_a_page_runs_in_the_order_of_the_page(page: str, reader: Reader) -> None:
    walk = WALKS[page]
    walk.given(reader)
    small = walk.small | SMALL
    for command in commands(PAGES[page]):
        if command in NOT_TYPED or command in reader.typed:
            continue
        if re.match(r"python projects/\w+/\w+\.py$", command):
            reader.interrupt(command, small, "epoch 2" if "plain" in command else "run_id=", (0, 1, 130, 75))
        elif command.startswith("mltrain ui"):
            reader.interrupt(command, small, "until Ctrl+C", (0,))
        elif command.startswith("mlflow server"):
            reader.serve(command, small, "/health")
        elif command.startswith("mlflow models serve"):
            reader.serve(command, small, "/ping")
        elif "--nnodes 2" in command:
            reader.on_two_machines(command, small)
        else:
            reader.type(command, small)
    walk.shown(reader)


def test_what_is_not_typed_is_on_a_page_and_every_other_page_has_a_walk() -> None:
    typed = {page: [one for one in commands(path) if one not in NOT_TYPED] for page, path in PAGES.items()}
    assert {page for page, words in typed.items() if words} == WALKS.keys()
    assert {one for path in PAGES.values() for one in commands(path)} >= NOT_TYPED.keys()


def test_what_pages_show_is_compared() -> None:
    """A walk checks every text block; drawings are left out."""
    with_text = {page.stem for page in DOCS.glob("*.md") if blocks(page, "text")}
    compared = {name for name in WALKS if f'PAGES["{name}"], "text"' in inspect.getsource(walks)}
    assert with_text == compared | {"architecture", "loops"}  # drawings; test_documentation.py
