"""A long record of removed checkpoints costs few requests."""

from pathlib import Path

from mltrain.checkpoint.pruner import Removals
from mltrain.store.artifacts import Entry
from mltrain.store.local import LocalArtifacts


class Listed(LocalArtifacts):
    """Counts the listings and reads of a store."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def entries(self, folder: str = "") -> list[Entry]:
        self.asked.append(folder)
        return super().entries(folder)

    def read(self, path: str, most: int) -> bytearray:
        self.asked.append(path)
        return super().read(path, most)


def test_the_record_of_removals_is_read_once_and_its_folder_only_where_it_can_be(tmp_path: Path) -> None:
    removals = Removals(artifacts := Listed(tmp_path))
    assert removals.append([{"checkpoint": "one", "bytes": 500000}]) == "1 checkpoint, 0.5 MB"
    assert artifacts.asked == ["retention.jsonl"]
    removals = Removals(artifacts := Listed(tmp_path))
    assert removals.append([{"checkpoint": "two", "bytes": 500000}]) == "2 checkpoints, 1.0 MB"
    assert artifacts.asked == ["retention.jsonl", "retention"]
