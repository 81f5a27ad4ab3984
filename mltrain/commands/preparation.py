"""Prepares a training before its run is open."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mltrain import device as devices
from mltrain.commands.checks import refuse_unusable
from mltrain.commands.import_checkpoint import Report, fit
from mltrain.commands.ranks import Alone
from mltrain.commands.resume_source import Origin, Origins
from mltrain.commands.train_request import Request, Resolved
from mltrain.config import Config
from mltrain.errors import UsageError
from mltrain.provenance import fingerprint
from mltrain.provenance.written import Watch, units_of
from mltrain.rng import Rng, seed_everything
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.task import Task, check_predictor, check_schedule
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import WRITTEN_TAG
from mltrain.trainer.loop import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A training that can begin once its run is open.

    Attributes:
        config: the configuration.
        origin: where the state comes from.
        trainer: has the built task and the restored state.
        code: fingerprint of the project's code.
        data: fingerprints of the data.
        changed: keys of the configuration that differ from the checkpoint's, with both values.
        random_numbers: the state of all random number generators at the start of the training.
    """

    config: Config
    origin: Origin
    trainer: Trainer
    code: Mapping[str, str]
    data: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]
    random_numbers: Mapping[str, Any]

    @property
    def changes_that_matter(self) -> dict[str, tuple[str, str]]:
        """The changed keys that may affect a step's result."""
        return {key: both for key, both in self.changed.items() if type(self.config).affects_training(key)}


class Preparation:
    """Prepares a training, and watches its writes among its data.

    Args:
        request: the request to train.
        server: the tracking server of the run to resume or fork.
        stop: the request to stop, checked after every step.
        ranks: the processes of the training.

    Attributes:
        project: the project to train.
        config: its configuration, before the chosen checkpoint's is taken into account.
        origins: chooses the origin of the state.
    """

    def __init__(self, request: Request, server: TrackingClient, stop: StopRequest, ranks: Alone) -> None:
        self._request = request
        self._ranks = ranks
        self._server = server
        self._stop = stop
        self._resolved = Resolved(request, server)
        self.project, self.config = self._resolved.project, self._resolved.config
        self.origins = Origins(server, request, self._ranks.read)
        self._watch = Watch({})

    def prepare(self, known: Any | None) -> Prepared:
        """Choose the origin, build the task, and restore the state.

        Args:
            known: MLflow's record of the run to resume. If ``None``, the run is new.
        """
        config = self.config
        code = fingerprint.code(self.project.place)
        origin = self.origins.choose(known, config.best_metric, config.best_mode)
        # A resumed fork that has committed nothing yet keeps its own recorded configuration.
        continued = origin.own is not None or origin.file is not None or self._request.fork_run is not None
        if continued and origin.params is not None:
            config = self._resolved.config_over(origin.params)
            refuse_unusable(config, self._server)
        if origin.foreign is not None and config.strategy == "fsdp" and self._ranks.size > 1:
            raise UsageError(
                f"{origin.file} was not written by mltrain, and strategy=fsdp loads no such file. Expected a checkpoint. "
                "Try: mltrain import, or strategy=ddp"
            )
        self._stop.on_usr1 = config.on_usr1
        changed = config.changes_from(origin.params) if origin.params is not None else {}
        written = self._written()
        task, data = self._built(config, written)
        origin.check(code, data, config.data_places(), units_of(written), allow_change=self._request.allow_change)
        task, stop = self._ranks.together(self.project, task, config, self._stop)
        trainer = Trainer(task, config, stop=stop, data=data)  # without tracker and saver until the run is open
        prepared = Prepared(config, origin, trainer, code, data, changed, {})
        if origin.foreign is not None:
            self._fit(origin, trainer)
        elif origin.parts is not None:
            imported = origin.manifest is not None and origin.manifest.kind == "imported"
            changed_values = prepared.changes_that_matter
            self._ranks.restore(trainer, origin.parts, imported=imported, changed=changed_values)
        else:
            seed_everything(config.seed)
        prepared = replace(prepared, random_numbers=Rng().state_dict())
        self._ranks.prepare(trainer, origin.parts)
        return prepared

    def _fit(self, origin: Origin, trainer: Trainer) -> None:
        """Load a foreign file, and warn about what was skipped."""
        assert origin.foreign is not None
        report = Report()
        fit(origin.foreign, trainer, report)
        for line in (*report.left, *(f"{name}: keeps its initial state" for name in report.fresh)):
            log.warning("Not taken from %s: %s", origin.file, line)
        seed_everything(self.config.seed)

    def record_writes(self, run: TrackedRun) -> None:
        """Begin to record writes among the data in the run."""
        self._watch.report_to(lambda text: run.set_tag(WRITTEN_TAG, text))

    def look(self) -> None:
        """Check whether the training has written among its data."""
        self._watch.look()

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def _built(self, config: Config, written: str) -> tuple[Task, dict[str, str]]:
        """Build the task reproducibly, and fingerprint its data.

        Files that earlier attempts wrote do not count.
        """
        places = config.data_places()
        devices.set_up(config)
        self.close()
        self._watch = watch = Watch(places, written)

        def began() -> dict[str, str]:
            found = fingerprint.contents_by_name(places)
            start = watch.began({name: contents for name, contents in found.items() if contents is not None})
            return {name: fingerprint.digest_of(start.get(name)) for name in found}

        # Files that the first build unpacks count as data. A resume takes the fingerprint before it builds the task again.
        before = None if self._source is None else began()
        seed_everything(config.seed)
        task: Any = self.project.build(config)
        if not isinstance(task, Task):
            raise UsageError(
                f"build() of the project {self.project.name!r} returned a {type(task).__name__}. Expected an mltrain.Task."
            )
        check_schedule(task, config)
        check_predictor(task, config)
        return task, began() if before is None else before

    @property
    def _source(self) -> str | None:
        return self._request.resume_run or self._request.fork_run

    def _written(self) -> str:
        """Return the recorded writes of earlier attempts."""
        if self._source is None:
            return ""
        return str(self._server.run(self._source).data.tags.get(WRITTEN_TAG, ""))
