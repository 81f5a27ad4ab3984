"""Private attributes, endpoints and defaults of MLflow.

Each has a test that fails once MLflow removes it.
"""

import base64
import json
import math
import os
import posixpath
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mltrain.compat.rest import RestClient
from mltrain.compat.rest_server import RestError

LONGEST_WAIT = 60.0
"""Most seconds that mltrain waits at a server's request."""
MOST_POINTS = 2000
"""Most points per run of one :func:`points` call. MLflow returns at most 2,500, and samples longer curves."""
MOST_RUNS = 100
"""Most runs of one :func:`points` call."""
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Their protocol buffer JSON (https://protobuf.dev/programming-guides/json)."""
BATCH_ENDPOINT = "/api/2.0/mlflow/runs/log-batch"
INTERVAL_ENDPOINT = "/api/2.0/mlflow/metrics/get-history-bulk-interval"


def entities() -> Any:
    """Return the module ``mlflow.entities``."""
    import mlflow.entities

    return mlflow.entities


def uri_of_mlflow() -> str:
    """Return MLflow's tracking URI, which the program may have set."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def is_mlflow_error(error: Any) -> bool:
    """Whether an error has an ``MlflowException``'s code and status."""
    known = sys.modules.get("mlflow.exceptions")  # a module that is not imported raised nothing
    return isinstance(error, RestError) or (known is not None and isinstance(error, known.MlflowException))


def is_generated_name(name: str) -> bool:
    """Whether MLflow generated a run's name, such as ``wistful-rat-123``."""
    from mlflow.utils import name_utils

    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    return number.isdecimal() and predicate in name_utils._GENERATOR_PREDICATES and noun in name_utils._GENERATOR_NOUNS


def latest_points(run: Any) -> Iterable[Any]:
    """Return each metric's latest point, with its step."""
    points: Iterable[Any] = run.data._metric_objs
    return points


def points(
    client: Any, uri: str, run_ids: Sequence[str], key: str, first: int | None = None, last: int | None = None
) -> list[tuple[str, tuple[int, float]]]:
    """Return a metric's points of runs: run id, and step and value.

    Args:
        client: an ``MlflowClient``.
        uri: of its tracking store.
        run_ids: of the runs, at most :data:`MOST_RUNS`.
        key: of the metric.
        first: step. If ``None``, from the first one on.
        last: step, inclusive. If ``None``, up to the last one.

    Returns:
        At most :data:`MOST_POINTS` points per run. If there are that many, MLflow may have left some out.
    """
    asked = {"run_ids": list(run_ids), "metric_key": key, "max_results": MOST_POINTS}
    if first is not None:
        asked |= {"start_step": first, "end_step": last}
    if isinstance(client, RestClient):
        return _located(client.ask("GET", INTERVAL_ENDPOINT, **asked))
    store: Any = client._tracking_client.store
    if not uri.startswith(("http://", "https://")):
        found = store.get_metric_history_bulk_interval(list(run_ids), key, MOST_POINTS, first, last)
        return [(metric.run_id, (int(metric.step), float(metric.value))) for metric in found]
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    answer = http_request(store.get_host_creds(), INTERVAL_ENDPOINT, "GET", params=asked)
    return _located(verify_rest_response(answer, INTERVAL_ENDPOINT).json())


def _located(answer: Mapping[str, Any]) -> list[tuple[str, tuple[int, float]]]:
    points = answer.get("metrics", ())
    return [(point["run_id"], (int(point.get("step", 0)), float(point.get("value", 0.0)))) for point in points]


def log_points(client: Any, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
    """Log points ten times cheaper than through MLflow's entities.

    Args:
        client: a ``RestClient``, or an ``MlflowClient`` of a server.
        run_id: of the run.
        points: key, value, milliseconds since 1970, and step of each.
    """
    metrics = [
        {"key": key, "value": value if math.isfinite(value) else _NOT_FINITE[str(value)], "timestamp": at, "step": step}
        for key, value, at, step in points
    ]
    if isinstance(client, RestClient):
        client.ask("POST", BATCH_ENDPOINT, run_id=run_id, metrics=metrics)
        return
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    credentials = client._tracking_client.store.get_host_creds()
    answer = http_request(credentials, BATCH_ENDPOINT, "POST", json={"run_id": run_id, "metrics": metrics})
    verify_rest_response(answer, BATCH_ENDPOINT)


def page_tokens(token: str, found: int, size: int, count: int) -> list[str]:
    """Predict the tokens of a search's next pages, if possible.

    Args:
        token: of the next page.
        found: entries of all earlier pages.
        size: requested entries per page.
        count: of tokens.

    Returns:
        Only ``token`` if it is not in the format of MLflow's own server.
    """

    def made(offset: int) -> str:
        return base64.b64encode(json.dumps({"offset": offset}).encode()).decode()

    if token != made(found):
        return [token]
    return [token, *(made(found + number * size) for number in range(1, count))]


def retry_after(error: BaseException | None) -> float:
    """Return a response's Retry-After in seconds, or 0.

    It is capped at :data:`LONGEST_WAIT`. MLflow's errors drop the headers, but the response is still in one of the frames that
    raised.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            headers = getattr(trace.tb_frame.f_locals.get("response"), "headers", None)
            if isinstance(headers, Mapping) and "Retry-After" in headers:
                try:
                    return min(LONGEST_WAIT, max(0.0, float(headers["Retry-After"])))
                except ValueError:
                    return 0.0  # a date; the clocks may differ
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return 0.0


def download(repository: Any, path: str, file: Path) -> None:
    """Download one artifact without listing first, keeping specific errors."""
    repository._download_file(path, str(file))


def is_presigned_only(repository: Any) -> bool:
    """Whether a server only presigns URLs (``--artifacts-presigned-only``, MLflow 3.18)."""
    asked = getattr(repository, "_is_artifacts_presigned_only", None)
    return bool(asked is not None and asked())


ContentSender = Callable[[str, Iterable[memoryview]], None]
"""Uploads sized content to an artifact path in one try."""


def content_sender(repository: Any) -> ContentSender | None:
    """Return a function that uploads content from memory, not files.

    Args:
        repository: MLflow's artifact repository of a store.

    Returns:
        ``None`` for a store that accepts only files, or whose files MLflow sends directly to the storage behind it.
    """
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.utils.mime_type_utils import _guess_mime_type
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    def to_server(path: str, content: Iterable[memoryview]) -> None:
        headers = {"Content-Type": _guess_mime_type(posixpath.basename(path))}
        augmented_raise_for_status(
            http_request(repository._host_creds, f"/{path}", "PUT", data=content, extra_headers=headers)
        )

    server = isinstance(repository, HttpArtifactRepository) and not repository._is_multipart_upload_enabled()
    return to_server if server else None


PartOpener = Callable[[str, int, int, int], tuple[bool, Iterator[bytes]]]
"""Requests a byte range of an artifact, in pieces of at most so many bytes. Returns whether the store honors the range, and the
pieces that it sends."""


def part_opener(repository: Any) -> PartOpener | None:
    """Return a function that reads byte ranges into memory.

    Args:
        repository: MLflow's artifact repository of a store.

    Returns:
        ``None`` for a store that supports only downloads to files.
    """
    import requests
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    def from_server(path: str, first: int, last: int, piece_size: int) -> tuple[bool, Iterator[bytes]]:
        headers = {"Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
        if is_presigned_only(repository):
            return from_storage(path, headers, piece_size)
        answer = http_request(repository._host_creds, f"/{path}", "GET", stream=True, extra_headers=headers)
        augmented_raise_for_status(answer)
        return answer.status_code == 206, answer.iter_content(piece_size)

    def from_storage(path: str, headers: Mapping[str, str], piece_size: int) -> tuple[bool, Iterator[bytes]]:
        place = repository._get_presigned_download_url(path)
        signed = {**place.headers, **headers}
        seconds = float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        answer = requests.get(place.url, headers=signed, stream=True, timeout=seconds)
        augmented_raise_for_status(answer)
        return answer.status_code == 206, answer.iter_content(piece_size)

    def from_bucket(path: str, first: int, last: int, piece_size: int) -> tuple[bool, Iterator[bytes]]:
        bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
        place = {"Bucket": bucket, "Key": posixpath.join(root, path), **repository._bucket_owner_params}
        found = repository._get_s3_client().get_object(Range=f"bytes={first}-{last - 1}", **place)
        return True, found["Body"].iter_chunks(piece_size)

    if isinstance(repository, HttpArtifactRepository):
        return from_server
    return from_bucket if type(repository) is S3ArtifactRepository else None
