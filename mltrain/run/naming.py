"""Names of new runs and experiments, and users' run ids.

An id is given whole or as a unique prefix, like those of git commits.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from mltrain.compat.private import is_generated_name
from mltrain.delivery.creation import recorded_spec
from mltrain.errors import RunNotFound
from mltrain.ownership.run_folder import may_be, stores
from mltrain.run.preparation import created_as
from mltrain.tracking.client import RUN_ID, TrackingClient
from mltrain.tracking.tags import REQUEST_ID_TAG

SHORTEST = 4
"""Smallest number of digits of a prefix."""

_PREFIX = re.compile(rf"[0-9a-f]{{{SHORTEST},31}}", re.ASCII)
_LISTED = 6

_LONGEST, _LONGEST_VALUE = 100, 24
"""Most characters of a name, and of one value in it."""
_OMITTED = ("experiment", "run_name", "device", "num_threads")
"""Keys that MLflow's pages show beside the name, or that do not change results."""


def short(project: str) -> str:
    """Return a project's short name.

    It is the registered name, or the name of the file or folder.
    """
    return project.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removesuffix(".py").strip(". ") or "project"


def experiment_for(project: str, wanted: str | None) -> str | None:
    """Return the name of a new run's experiment.

    Args:
        project: name of the project or pipeline, the default.
        wanted: the user's choice, which takes precedence.

    Returns:
        Its name. ``None`` if ``MLFLOW_EXPERIMENT_NAME`` or ``MLFLOW_EXPERIMENT_ID`` chooses it.
    """
    chosen_outside = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")
    return wanted or (None if chosen_outside else short(project))


def run_name(
    project: str, preset: str | None = None, given: Mapping[str, Any] | None = None, order: Sequence[str] = ()
) -> str:
    """Return the name of a new run.

    It consists of month, day and time in UTC, the values that differ from the defaults, and the project.

    MLflow's list of runs shows about twenty characters of a name, so the time and the differences come before the project,
    which is also the name of the experiment.

    Args:
        project: name of the project or pipeline.
        preset: of its configuration. If ``None``, the name shows no preset.
        given: configuration values that the user gave; paths and long values are omitted.
        order: keys, the most important first; other keys follow in the order of ``given``.
    """
    rank = {key: number for number, key in enumerate(order)}
    words, last = [f"{datetime.now(UTC):%m-%d %H:%M}"], [*([preset] if preset else []), short(project)]
    for key, value in sorted((given or {}).items(), key=lambda one: rank.get(one[0], len(rank))):
        text = f"{key}={value}"
        short_enough = len(str(value)) <= _LONGEST_VALUE and len(" ".join((*words, text, *last))) <= _LONGEST
        if short_enough and key not in _OMITTED and not {"/", "\\"} & set(str(value)):
            words.append(text)
    # Always a name: MLflow would draw one from Python's global random numbers, which belong to the training.
    return " ".join((*words, *last))


def renamed(present: str | None, wanted: str | None, fallback: str) -> str | None:
    """Return the new name of a run created by ``mlflow run``.

    Returns ``None`` if the run keeps its name.

    Args:
        present: its name.
        wanted: the user's name for it. If ``None``, the user chose none.
        fallback: replaces a name that MLflow generated.
    """
    return wanted or (fallback if not present or is_generated_name(present) else None)


def is_run_id(word: str) -> bool:
    """Whether a word looks like a run id or prefix."""
    return bool(RUN_ID.fullmatch(word.lower()) or _PREFIX.fullmatch(word.lower()))


def full_id(server: TrackingClient, word: str) -> str:
    """Return MLflow's id for an id or a prefix.

    Args:
        server: that has the run.
        word: its id, or at least the first four digits, in upper or lower case; also of its provisional id.

    Raises:
        RunNotFound: the word is no id, or no run or more than one has it. A whole id is not looked up.
        TrackingError: the server does not answer.
    """
    digits = word.lower()
    if RUN_ID.fullmatch(digits):
        return created_as(server, digits)
    if not _PREFIX.fullmatch(digits):
        raise RunNotFound(
            f"{word!r:.80} is not the id of a run. Expected 32 hexadecimal digits, or at least the first {SHORTEST} of them. "
            "Try: mltrain runs"
        )
    found = dict(islice(_on_server(server, digits), _LISTED))
    for provisional, created in _on_this_host(server, digits):
        if created is None or created not in found:
            found[created or provisional] = "trained here before its run was created"
    if not found:
        raise RunNotFound(
            f"Not found in {server.shown}: a run whose id begins with {word!r}. Is MLFLOW_TRACKING_URI that of the training? "
            "Try: mltrain runs"
        )
    if len(found) > 1:
        listed = ", ".join(f"{run_id} ({name})" for run_id, name in sorted(found.items()))
        raise RunNotFound(f"{word!r} is ambiguous. Expected more digits, got the beginning of several ids: {listed}.")
    return created_as(server, next(iter(found)))


def recorded_id(server: TrackingClient, run_id: str) -> str:
    """Return MLflow's id of the run that a file names.

    The file may have the provisional id, also from another host.

    Raises:
        RunNotFound: this store has no such run, or it is deleted.
        TrackingError: the server does not answer.
    """
    try:
        return str(server.run(full_id(server, run_id)).info.run_id)
    except RunNotFound:
        if not RUN_ID.fullmatch(run_id):
            raise
        experiments = [experiment.experiment_id for experiment in server.search_experiments()]
        found = next(server.search_runs(experiments, f"tags.`{REQUEST_ID_TAG}` = '{run_id}'"), None)
        if found is None:
            raise
        return str(found.info.run_id)


def _on_server(server: TrackingClient, digits: str) -> Iterator[tuple[str, str]]:
    """Yield id and name of active runs with this prefix."""
    experiments = [experiment.experiment_id for experiment in server.search_experiments()]
    for run in server.search_runs(experiments, f"attributes.run_id LIKE '{digits}%'"):
        yield run.info.run_id, run.info.run_name


def _on_this_host(server: TrackingClient, digits: str) -> Iterator[tuple[str, str | None]]:
    """Yield this host's provisional ids with this prefix, with MLflow's."""
    for root, address in stores(server):
        for home in root.glob(f"{digits}*") if may_be(server, address) else ():
            spec = recorded_spec(home) if RUN_ID.fullmatch(home.name) else None
            if spec is not None:
                yield home.name, spec.run_id
