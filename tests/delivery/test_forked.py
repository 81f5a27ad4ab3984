"""Records of a forked process: a warning names what to do."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from mltrain.delivery.journal import Journal
from mltrain.delivery.media import MediaWriter


def logged_in_a_fork(function: Callable[[], object], file: Path) -> str:
    """Return what a function logs in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            logging.basicConfig(filename=file, force=True)
            function()
            os._exit(0)
        finally:
            os._exit(3)
    assert os.waitpid(child, 0)[1] == 0
    return file.read_text()


@pytest.mark.parametrize("kind", ["points", "tag", "picture"])
def test_a_forked_process_is_warned_once_that_nothing_is_recorded(kind: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", 1)
    media = MediaWriter(tmp_path, journal)
    record: Callable[[], None] = {
        "points": lambda: journal.log_metrics({"loss": 1.0}, 1, 1),
        "tag": lambda: journal.log_item("tag", "note", "text"),
        "picture": lambda: media.log_pictures({"input": np.zeros((4, 4, 3), np.uint8)}, 1, 1),
    }[kind]

    def twice() -> None:
        record()
        record()

    logged = logged_in_a_fork(twice, tmp_path / "log")
    assert logged.count("are not recorded") == 1
    assert f"return them to process {os.getpid()}" in logged
    record()
    media.close(10)
    journal.flush()
    assert journal.unsent() >= 1
    journal.close()


class Logging(Dataset[int]):
    """Logs a metric for each of its items."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> int:
        self._journal.log_metrics({"item": number}, number, 1)
        return number


def test_a_worker_of_a_loader_records_nothing_and_the_training_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", 1)
    assert len(list(DataLoader(Logging(journal), num_workers=1, multiprocessing_context="fork"))) == 4
    journal.log_metrics({"loss": 1.0}, 1, 1)
    journal.flush()
    assert [point.key for point in journal.unsent_points()] == ["loss"]
    journal.close()
