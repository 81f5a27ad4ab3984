"""Files of this machine that follow the checkpoints of a training: ``model_save_path``, ``export``, ``checkpoint_path``."""

import logging
from collections.abc import Iterator
from pathlib import Path

from mltrain.checkpoint import checkpoint_file, codec
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.config import Config
from mltrain.errors import MltrainError
from mltrain.store.durable import replace_file

log = logging.getLogger(__name__)

LATEST = "latest_checkpoint.pth"
BEST = "best_model.pth"
INTERRUPTED = "interrupted_checkpoint.pth"
EPOCH = "checkpoint_epoch_{}.pth"


class Export:
    """Copies each committed checkpoint to the files that a configuration asks for.

    A file that cannot be written is a warning: the run has the checkpoint.

    Args:
        config: says where and what.
        project: what is trained, for the files to tell.
    """

    def __init__(self, config: Config, project: str) -> None:
        self._config = config
        self._project = project

    def __call__(self, manifest: Manifest, best: Manifest | None, store: CheckpointStore) -> None:
        """Copy a checkpoint that was just committed; ``best`` is the best one of the run."""
        is_best = best is not None and best.id == manifest.id
        try:
            self._weights(manifest, store, is_best=is_best)
            files = list(self._files(manifest, is_best=is_best))
            content = store.fetch(manifest) if files else {}
            for file in files:
                checkpoint_file.write_checkpoint(file, manifest, content, self._project)
        except (MltrainError, OSError) as error:
            log.warning("Checkpoint %s is in the run, and not in a file of its own: %s", manifest.name, error)

    def _files(self, manifest: Manifest, *, is_best: bool) -> Iterator[Path]:
        """Yield the files that a whole checkpoint goes to."""
        config = self._config
        if config.checkpoint_path is not None:
            yield config.checkpoint_path
        if config.model_save_path is None or config.export != "full":
            return
        yield config.model_save_path / LATEST
        if manifest.kind == "interrupted":
            yield config.model_save_path / INTERRUPTED
        if manifest.kind == "epoch" and config.checkpoint_mode == "every":
            yield config.model_save_path / EPOCH.format(manifest.epoch)
        if is_best:
            yield config.model_save_path / BEST

    def _weights(self, manifest: Manifest, store: CheckpointStore, *, is_best: bool) -> None:
        if self._config.model_save_path is None or self._config.export != "weights":
            return
        stamp = {"run_id": manifest.run_id, "checkpoint": manifest.name, "project": self._project}
        weights = store.fetch(manifest, only=lambda name: name.startswith("model"))
        for stem in ("latest", "best") if is_best else ("latest",):
            for name, content in weights.items():
                replace_file(
                    self._config.model_save_path / name.replace("model", stem, 1), codec.stamped(content, stamp)
                )
