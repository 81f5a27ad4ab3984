"""A request to train, and its project and configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.retention import is_policy
from mltrain.checkpoint.settings import refuse_unless
from mltrain.config import Config
from mltrain.configuration.aliases import RESUME_KEY, SECTIONS, own_key
from mltrain.errors import UsageError, nearest
from mltrain.ownership.attempts import recorded_config
from mltrain.project import Project, find
from mltrain.run import stage_outputs as outputs
from mltrain.run.checkpoints import checkpoints_of, trained_config
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import IMPORTED_TAG, PIPELINE_TAG, PROJECT_TAG, STAGE_TAG


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to train.

    Attributes:
        project: a registered name, a file or a folder, or a project itself. If ``None``, the one that the resumed run
            recorded.
        files: configuration files, which override the project's own.
        preset: name of an overlay of the configuration.
        overrides: keys and values that override all others.
        config: the whole configuration, instead of files, preset and overrides.
        resume_run: the id of the run to continue, or its first digits.
        resume_from: ``latest``, ``best``, ``interrupted``, ``epoch:N``, ``step:N`` or a checkpoint's name.
        resume: the id of a run, or a file; resolved by :mod:`mltrain.commands.resume_target`.
        resume_file: a file to begin from: in the run ``resume_run``, which wrote it, or in a new run.
        fork_run: the id of a run whose checkpoint starts a new run.
        run_key: an external key by which the same command finds its run again; ``auto`` uses the id of the cluster job.
        take_over: whether to take the run over without waiting for its holder's lease to expire.
        allow_change: whether to resume although the data have changed since the checkpoint.
        require_tracking: whether to refuse to begin while the tracking server does not answer.
        parent: id of the parent of a new run.
        tags: further tags that a new run is created with.
    """

    project: str | Project | None = None
    files: tuple[Path, ...] = ()
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None
    resume_run: str | None = None
    resume_from: str = "latest"
    resume: str | Path | None = None
    resume_file: Path | None = None
    fork_run: str | None = None
    run_key: str | None = None
    take_over: bool = False
    allow_change: bool = False
    require_tracking: bool = False
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


OPTIONS = (
    "name",
    "config",
    "preset",
    "resume",
    "resume_run",
    "resume_from",
    "fork_run",
    "run_key",
    "take_over",
    "allow_change",
    "require_tracking",
)
"""Arguments of :func:`mltrain.train` that are not keys of a configuration."""


def request_of(project: str | Path | Project | None, words: Mapping[str, Any]) -> Request:
    """Return the arguments of :func:`mltrain.train` as a request.

    Raises:
        UsageError: an argument is neither an option nor a key of the project's configuration, there is no such project, or
            ``config`` names no files.
    """
    found = find(str(project)) if isinstance(project, (str, Path)) else project
    refuse_unless(
        found is None or isinstance(found, Project), "project", found, "a name, a file, a folder or a Project"
    )
    keys = (found.config if found is not None else Config).model_fields
    options = {word: value for word, value in words.items() if word in OPTIONS and word not in keys}
    given = {word: value for word, value in words.items() if word not in options}
    overrides = {word: str(value) if is_policy(value) else value for word, value in given.items()}
    if found is not None:
        known = [*OPTIONS, *keys]
        for word in overrides:
            if own_key(word, keys).split(".")[0] not in known and word not in (RESUME_KEY, *SECTIONS):
                raise UsageError(
                    f"{word!r} is neither an option of train() nor a key of the project {found.name!r}.{nearest(word, known)}"
                )
    if "name" in options:
        overrides["run_name"] = options.pop("name")
    config = options.pop("config", ())
    files = (config,) if isinstance(config, (str, Path)) else config
    of_files = isinstance(files, (list, tuple)) and all(isinstance(file, (str, Path)) for file in files)
    refuse_unless(of_files, "config", config, "a file, or several; keys are arguments, as in train(project, epochs=3)")
    return Request(project=found, files=tuple(map(Path, files)), overrides=overrides, **options)


def recorded_project(run: Any, recorded: Mapping[str, Any], remedy: str) -> Project:
    """Return the project that a run recorded.

    Args:
        run: MLflow's record of the run.
        recorded: its recorded configuration.
        remedy: the command that names a project.

    Raises:
        UsageError: the run was imported without a project, or the recorded one is not found here.
    """
    if IMPORTED_TAG in run.data.tags and not recorded.get("project"):
        raise UsageError(
            f"Run {run.info.run_id} was imported without a project. Expected one that has its model. Try: {remedy}"
        )
    return find(str(recorded.get("project") or run.data.tags.get(PROJECT_TAG, "")), recorded=True)


class Resolved:
    """The project and the checked configuration of a request.

    Nothing is claimed or created.

    Attributes:
        project: the project to train.
        config: its configuration.

    Args:
        request: the request to train.
        server: the tracking server of the run to resume or fork.

    Raises:
        UsageError: neither a project nor a run is named, or the run is a pipeline's.
        RunNotFound, ConfigError: there is no such run, or the configuration is not valid.
    """

    def __init__(self, request: Request, server: TrackingClient) -> None:
        self._request = request
        source = request.resume_run or request.fork_run
        word = request.project
        base: Mapping[str, Any] | None = None
        if source is not None and not (isinstance(word, Project) and request.config is not None):
            run = server.run(source)
            if PIPELINE_TAG in run.data.tags and STAGE_TAG not in run.data.tags:
                raise UsageError(
                    f"Run {source} belongs to a pipeline. Try: mltrain pipeline --run {source} --mode resume"
                )
            inputs = outputs.fetched_inputs(server, run, request.overrides)
            self._request = replace(request, overrides={**inputs, **request.overrides})
            recorded = recorded_config(artifacts_of(server, run))
            named = request.resume_from not in ("best", "interrupted")
            base = trained_config(checkpoints_of(server, run), request.resume_from if named else "latest") or None
            if not word:
                option = "--resume-run" if request.resume_run is not None else "--fork-run"
                word = recorded_project(run, recorded, f"mltrain train PROJECT {option} {source}")
        if request.resume_file is not None:
            written = checkpoint_file.origin_of(request.resume_file)
            if written is not None and written.complete:
                base = checkpoint_file.params_of(request.resume_file)
                word = word or (find(written.project, recorded=True) if written.project else None)
        if word is None:
            raise UsageError(
                "The command names no project. Try: mltrain train PROJECT, or mltrain train --resume-run ID"
            )
        self.project = find(word) if isinstance(word, str) else word
        self.config = self.config_over(base)

    def config_over(self, base: Mapping[str, Any] | None) -> Config:
        """Return the request's configuration over ``base`` or the project's file.

        Raises:
            ConfigError: the configuration is invalid.
        """
        request, project = self._request, self.project
        if request.config is not None:
            return request.config
        own = [project.config_file] if project.config_file is not None and base is None else []
        if base is not None and request.preset is not None and project.config_file is not None:
            # A preset of the project's file may be laid over a resumed configuration, without the file's other keys.
            overlay = project.config.overlay(project.config_file, request.preset)
            return project.config.load(request.files, overrides={**overlay, **request.overrides}, base=base)
        return project.config.load(
            (*own, *request.files), preset=request.preset, overrides=request.overrides, base=base
        )
