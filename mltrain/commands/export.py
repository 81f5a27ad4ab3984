"""Copies checkpoints to the files that a configuration names."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

from mltrain.checkpoint import checkpoint_file, tensor_file
from mltrain.checkpoint.manifest import FileEntry, Manifest, whole_manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.config import Config
from mltrain.errors import MltrainError
from mltrain.store.artifacts import sha256_of
from mltrain.store.durable import replace_file, set_aside

log = logging.getLogger(__name__)

LATEST = "latest_checkpoint.pth"
BEST = "best_model.pth"
INTERRUPTED = "interrupted_checkpoint.pth"
EPOCH = "checkpoint_epoch_{}.pth"


class Export:
    """Copies each committed checkpoint to configured files.

    A file that cannot be written is logged as a warning, since the run has the checkpoint. The best file of another run is kept
    while it is better by the same metric, and is renamed if the two cannot be compared.

    Args:
        config: names the files to write.
        project: name of the project, recorded in the files.
    """

    def __init__(self, config: Config, project: str) -> None:
        self._config = config
        self._project = project
        self._warned: set[Path] = set()

    def __call__(self, manifest: Manifest, best: Manifest | None, store: CheckpointStore) -> None:
        """Copy a committed checkpoint; ``best`` is the run's best one."""
        is_best = best is not None and best.id == manifest.id
        try:
            self._weights(manifest, store, is_best=is_best)
            files = list(self._files(manifest, is_best=is_best))
            content = store.fetch(manifest) if files else {}
            made = content if manifest.shards else {}
            whole = {name: FileEntry(size=len(one), sha256=sha256_of(one)) for name, one in made.items()}
            for file in files:
                checkpoint_file.write_checkpoint(file, whole_manifest(manifest, whole), content, self._project)
        except (MltrainError, OSError) as error:
            log.warning("Checkpoint %s is in the run, but could not be copied to a file: %s", manifest.name, error)

    def _files(self, manifest: Manifest, *, is_best: bool) -> Iterator[Path]:
        """Yield the files to which the whole checkpoint is copied."""
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
        if is_best and self._is_due(config.model_save_path / BEST, manifest):
            yield config.model_save_path / BEST

    def _weights(self, manifest: Manifest, store: CheckpointStore, *, is_best: bool) -> None:
        folder = self._config.model_save_path
        if folder is None or self._config.export != "weights":
            return
        stamp = {"run_id": manifest.run_id, "checkpoint": manifest.name, "project": self._project}
        weights = store.fetch(manifest, only=lambda name: name.startswith("model"))
        value = manifest.metrics.get(self._config.best_metric)
        measured = {} if value is None else {"metric": self._config.best_metric, "value": repr(value)}
        names = [name.replace("model", "best", 1) for name in weights]
        is_best = is_best and all(self._is_due(folder / name, manifest) for name in names)
        for stem in ("latest", "best") if is_best else ("latest",):
            for name, content in weights.items():
                replace_file(folder / name.replace("model", stem, 1), tensor_file.stamped(content, stamp | measured))

    def _is_due(self, file: Path, manifest: Manifest) -> bool:
        """Whether to write a best file; rename one worth keeping."""
        if not file.exists():
            return True
        written, theirs = self._origin(file)
        metric, own = self._config.best_metric, manifest.metrics.get(self._config.best_metric)
        same_run = written is not None and written.run_id == manifest.run_id
        if theirs is None or own is None or written is None or written.project != self._project:
            if not same_run:
                aside = set_aside(file, "before").name
                log.warning(
                    "%s is kept as %s: it is not from a training of %s that measures %s.",
                    file,
                    aside,
                    self._project,
                    metric,
                )
            return True
        if (own <= theirs) if self._config.best_mode == "min" else (own >= theirs):
            return True
        if same_run:  # the run went back to an earlier checkpoint
            log.warning(
                "%s is kept as %s: its %s of %.5g is better than %.5g, but this run went back to before that checkpoint.",
                file,
                set_aside(file, "before").name,
                metric,
                theirs,
                own,
            )
        elif file not in self._warned:
            self._warned.add(file)
            log.warning(
                "%s is left to run %s, whose %s of %.5g is better than %.5g. To get the best of this run: mltrain pull %s "
                "--to FOLDER",
                file,
                written.run_id,
                metric,
                theirs,
                own,
                manifest.run_id,
            )
        return same_run

    def _origin(self, file: Path) -> tuple[checkpoint_file.FileOrigin | None, float | None]:
        """Return a file's origin and its finite value that decides."""
        value, metric = math.nan, self._config.best_metric
        try:
            written = checkpoint_file.origin_of(file)
            if written is not None and written.complete:
                manifest = checkpoint_file.manifest_of(file)
                value = manifest.metrics.get(metric, math.nan) if manifest is not None else math.nan
            elif written is not None:
                stamp = tensor_file.stamp_of(file) or {}
                value = float(stamp["value"]) if stamp.get("metric") == metric else math.nan
        except (MltrainError, OSError, ValueError, KeyError):
            return None, None
        return written, value if math.isfinite(value) else None
