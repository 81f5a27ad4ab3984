"""Commits while the run waits to be created."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mltrain.store.artifacts import DeferredArtifacts, NoRunYet
from tests.support.benches import Bench
from tests.support.places import behind
from tests.support.runs import FolderRun


class Late(FolderRun):
    """A run that is created once :meth:`create` is called."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, place=behind(folder / "artifacts"))
        self.listeners: list[Callable[[], None]] = []

    def when_known(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def create(self) -> None:
        self.id = "f" * 32
        for listener in self.listeners:
            listener()


class CreatedMeanwhile(DeferredArtifacts):
    """Artifacts of a run created right after an upload failed."""

    def __init__(self, run: Late) -> None:
        super().__init__()
        self.run, self.later = run, run.artifacts

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        try:
            super().upload_all(files, folder, sent)
        except NoRunYet:
            self.target = self.later
            self.run.create()
            raise


def test_an_upload_that_fails_while_the_run_is_created_is_tried_again(tmp_path: Path) -> None:
    run = Late(tmp_path)
    run.artifacts = CreatedMeanwhile(run)
    bench = Bench(run)
    bench.save(1)
    bench.settled()  # waits for the first try at least, which queues the second
    assert bench.settled()
    assert (bench.committed, bench.committer.refused) == ([1], False)
    bench.committer.close()
