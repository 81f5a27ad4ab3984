"""The artifacts of a run that does not exist yet: until it does, nothing can be uploaded, and there is nothing."""

from collections.abc import Sequence
from pathlib import Path

from mltrain.errors import StorageError
from mltrain.store.artifacts import Artifacts, Entry
from mltrain.store.removal import DEAD_SECONDS


class DeferredArtifacts:
    """Artifacts whose place becomes known later; see :class:`mltrain.store.artifacts.Artifacts`.

    Checkpoints are staged in the run's folder and uploaded file by file, even if the store proves to be on this machine.
    """

    def __init__(self, target: Artifacts | None = None) -> None:
        self.local_root: Path | None = None
        self.target = target

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.entries(folder)

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        self._there().upload(file, folder)

    def upload_all(self, files: Sequence[Path], folder: str) -> None:
        """See :class:`Artifacts`."""
        self._there().upload_all(files, folder)

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`Artifacts`."""
        if self.target is None:
            raise FileNotFoundError(path)
        return self.target.read(path, most)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_checkpoint(name)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_output(name)

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_model(model_id)

    def litter(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.litter(untouched)

    def remove_litter(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        return 0 if self.target is None else self.target.remove_litter(untouched)

    def _there(self) -> Artifacts:
        if self.target is None:
            raise StorageError("The tracking server has not answered yet, so the run has no artifact store.")
        return self.target
