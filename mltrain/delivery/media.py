"""Makes pictures, epoch table and learning curves in the background."""

import copy
import json
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mltrain.delivery.images import as_image, save_for_ui, ui_identity, ui_stem
from mltrain.delivery.journal import Journal, image_step
from mltrain.errors import UsageError
from mltrain.history import CsvLog, History, learning_curves
from mltrain.store.artifacts import Artifacts
from mltrain.store.names import OUTBOX
from mltrain.tracking.names import Names, picture_name

log = logging.getLogger(__name__)

LOG_FILE = "log.csv"
CURVES_FILE = "learning_curves.png"
_CURVES_SECONDS = 60.0
_MOST_WAITING = 10_000


class MediaWriter:
    """Makes a run's pictures and tables on a thread.

    It queues them in the journal.

    Args:
        home: the run's folder on this host; it buffers pictures until they are sent.
        journal: of the run.
    """

    def __init__(self, home: Path, journal: Journal) -> None:
        self._home = home
        self._journal = journal
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._making: str | None = None
        self._closed = False
        # A daemon, because at its end the interpreter waits for all other threads, and this process may end at a deadline.
        self._worker = threading.Thread(target=self._work, name="mltrain-pictures", daemon=True)
        self._worker.start()
        self._log: CsvLog | None = None
        self._drawn = -math.inf
        self._delivered: set[tuple[str, int]] = set()
        self._names = Names("picture", picture_name)

    def skip_delivered(self, artifacts: Artifacts, step: int) -> None:
        """Skip queued and delivered pictures from a step on."""
        names = (entry.name for entry in artifacts.entries("images"))
        waiting = {(item.key, image_step(item.value)) for item in self._journal.unsent_items(_MOST_WAITING, "image")}
        self._delivered = {found for name in names if (found := ui_identity(name)) and found[1] >= step} | waiting

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Queue pictures for the UI's step slider and as files.

        The picture ``inference/A_to_B`` of epoch 5 is the file ``inference/epoch_0005/A_to_B.jpg`` among the artifacts.
        """
        timestamp = time.time_ns() // 1_000_000
        for name, picture in self._names.translated(pictures).items():
            if (name, step) not in self._delivered:
                try:
                    kept = picture if hasattr(picture, "savefig") else as_image(picture)
                except (UsageError, OSError, ValueError) as error:
                    log.warning("The picture %s of epoch %d is skipped: %s", name, epoch, error)
                    continue
                self._in_background(f"{name} of step {step}", self._encode, name, kept, step, epoch, timestamp)

    def log_epoch(self, history: History) -> None:
        """Update the CSV log and, every minute, the learning curves."""
        if self._log is None:
            self._log = CsvLog(self._home / LOG_FILE, history)
        self._log.update()
        self._journal.log_item("file", "", str(self._log.path))
        if time.monotonic() - self._drawn > _CURVES_SECONDS:
            self._drawn = time.monotonic()
            self._in_background("the learning curves", self._draw, copy.deepcopy(history))

    def finish_epochs(self, history: History) -> None:
        """Update log and learning curves once more, with all epochs."""
        if history.rows:
            self._drawn = math.inf
            self.log_epoch(history)
            self._in_background("the learning curves", self._draw, history)

    def close(self, seconds: float) -> list[str]:
        """Wait for all pictures until a timeout; return unfinished names."""
        self._jobs.put(None)
        self._worker.join(seconds)
        self._closed = True
        left = [] if self._making is None else [self._making]
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return left
            left += [job[0]] if job is not None else []

    def _in_background(self, what: str, job: Callable[..., None], *arguments: Any) -> None:
        if not self._journal.is_forked():
            self._jobs.put((what, lambda: job(*arguments)))

    def _work(self) -> None:
        while not self._closed and (job := self._jobs.get()) is not None:
            self._making = job[0]
            try:
                job[1]()
            except OSError as error:
                log.warning("%s could not be written: %s", job[0], error)
            except Exception:
                log.exception("%s could not be made", job[0])
            self._making = None

    def _draw(self, history: History) -> None:
        file = self._home / CURVES_FILE
        learning_curves(history).savefig(file, dpi=110)
        self._journal.log_item("file", "", str(file))

    def _encode(self, name: str, picture: Any, step: int, epoch: int, timestamp: int) -> None:
        outbox = self._home / OUTBOX
        outbox.mkdir(exist_ok=True)
        image = as_image(picture)
        identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"{self._home.name}/{name}/{step}")
        paths = [
            (str(path), "images") for path in save_for_ui(image, outbox, ui_stem(name, step, timestamp, identifier))
        ]
        group, _, rest = name.rpartition("/")
        folder = f"{group or 'pictures'}/epoch_{epoch:04d}"
        plain = outbox / folder.replace("/", "-") / f"{rest}.jpg"
        plain.parent.mkdir(exist_ok=True)
        image.save(plain, quality=95)
        paths.append((str(plain), folder))
        self._journal.log_item("image", name, json.dumps({"files": paths}))
        self._journal.log_item("tag", "mlflow.loggedImages", "True")
