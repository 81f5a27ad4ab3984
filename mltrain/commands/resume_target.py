"""Resolves the value of ``--resume``, a run or a file."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.checkpoint_file import FileOrigin
from mltrain.commands.export import LATEST
from mltrain.commands.train_request import Request
from mltrain.configuration.aliases import RESUME_KEY, own_words
from mltrain.configuration.fields import NOT_GIVEN
from mltrain.configuration.files import read_mapping
from mltrain.errors import NoCheckpoint, RunNotFound, UsageError
from mltrain.project import Project
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.naming import full_id, is_run_id, recorded_id
from mltrain.store.folders import expanded
from mltrain.tracking.client import TrackingClient

log = logging.getLogger(__name__)

WITHOUT_VALUE = "true"
"""Value of ``--resume`` without a value, which means the file of ``checkpoint_path``."""


_CHOICE = re.compile(r"latest|best|interrupted|(epoch|step):\d+|step-\d{9}-a\d{2,6}", re.ASCII)


def names_run(target: str) -> bool:
    """Whether the value names a run and not a file."""
    return is_run_id(target) and not Path(target).exists()


def resolve_target(request: Request, server: TrackingClient) -> Request:
    """Return the request with its run ids and ``resume`` resolved.

    A file that a run of this store wrote continues that run; any other file begins a new one.

    Raises:
        UsageError: the request names two things to resume from, or ``--resume`` has no value.
        RunNotFound: no run or more than one has an id that begins so.
        NoCheckpoint, DamagedCheckpoint: the file is missing or damaged.
    """
    request, target = _target_of(request)
    if target is None:
        resumed, forked = (
            None if run is None else full_id(server, run) for run in (request.resume_run, request.fork_run)
        )
        return replace(request, resume_run=resumed, fork_run=forked)
    if names_run(target):
        return replace(request, resume_run=full_id(server, target))
    file = _file(target)
    if request.resume_from != "latest":
        raise UsageError(
            f"--resume-from {request.resume_from} chooses among the checkpoints of a run, and {file} is one checkpoint. "
            "Expected one of the two."
        )
    written = checkpoint_file.origin_of(file)
    if written is None or written.run_id is None:
        return replace(request, resume_file=file)
    return _of_its_run(request, server, file, written)


def _target_of(request: Request) -> tuple[Request, str | None]:
    """Return the request without ``resume``, and the value of ``resume``.

    A key on the command line counts as the option; a key in a file applies only if the command line names nothing.
    """
    fields = request.project.config.model_fields if isinstance(request.project, Project) else {}
    own_field = RESUME_KEY in fields
    overrides = {key: value for key, value in request.overrides.items() if key != RESUME_KEY or own_field}
    key = None if own_field else _given(request.overrides.get(RESUME_KEY))
    target = _given(request.resume)
    named = {"--resume": target, RESUME_KEY: key, "--resume-run": request.resume_run, "--fork-run": request.fork_run}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1 and not (given == ["--resume", RESUME_KEY] and target == key):
        raise UsageError(f"{' and '.join(given)} both name what to begin from. Expected only one.")
    target = target or key
    contents = [own_words(read_mapping(file), fields, str(file)) for file in request.files]
    if not given and not own_field:
        target = next((found for one in contents[::-1] if (found := _given(one.get(RESUME_KEY))) is not None), None)
    if target == WITHOUT_VALUE:
        places = [overrides, *contents[::-1]]
        target = next((_given(one.get("checkpoint_path")) for one in places if "checkpoint_path" in one), None)
        if target is None:
            raise UsageError(
                "--resume names nothing. Expected the id of a run (mltrain runs lists them), a file, or checkpoint_path=FILE "
                "with it."
            )
    return replace(request, resume=None, overrides=overrides), target


def _given(target: Any) -> str | None:
    """Return a value as text, or ``None`` if not given."""
    if target is True:
        return WITHOUT_VALUE
    return None if target is None or target is False or str(target) in {*NOT_GIVEN, "false", "False"} else str(target)


def _file(target: str) -> Path:
    """Return the named file, or an export folder's newest one.

    Raises:
        NoCheckpoint: there is no such file.
        UsageError: the value chooses among the checkpoints of a run, or the home folder of ``~`` is unknown.
    """
    path = expanded(target).absolute()
    if not path.exists() and _CHOICE.fullmatch(target):
        raise UsageError(
            f"--resume {target} names no run and no file: {target} chooses among the checkpoints of a run. Try: mltrain train "
            f"--resume ID --resume-from {target} (mltrain runs lists the ids)"
        )
    if path.is_dir():
        if (path / LATEST).is_file():
            return path / LATEST
        listed = checkpoint_file.hints_for_missing(path / LATEST)
        raise NoCheckpoint(f"{path} is a folder without {LATEST}. Expected a file, or the id of a run.{listed}")
    if not path.is_file():
        raise NoCheckpoint(
            f"There is no file {path}.{checkpoint_file.hints_for_missing(path)} Whole checkpoints are written as files with "
            "export=full and model_save_path=FOLDER, or with checkpoint_path=FILE; without that, resume by the id of the run: "
            "mltrain train --resume-run ID (mltrain runs lists them)."
        )
    return path


def _of_its_run(request: Request, server: TrackingClient, file: Path, written: FileOrigin) -> Request:
    """Continue a file's run, or begin a new one."""
    assert written.run_id is not None
    try:
        run_id = recorded_id(server, written.run_id)
    except RunNotFound as error:
        log.warning("A new run begins with %s, because the run that wrote it is not in this store: %s", file, error)
        return replace(request, resume_file=file)
    if written.complete:
        return replace(request, resume_run=run_id, resume_file=file)
    checkpoints = open_checkpoints(run_id, server)  # the file has weights only; the run has the rest
    if written.checkpoint is not None and checkpoints.matching(written.checkpoint):
        newest = checkpoints.newest()
        is_newest = newest is not None and newest.name == written.checkpoint
        return replace(request, resume_run=run_id, resume_from="latest" if is_newest else written.checkpoint)
    log.warning(
        "A new run begins with the weights in %s, because run %s no longer has checkpoint %s.",
        file,
        run_id,
        written.checkpoint,
    )
    return replace(request, resume_file=file)
