"""Points and statuses that a tracking store recorded."""

import mlflow


def points(run_id: str, uri: str | None = None) -> dict[str, list[tuple[int, float]]]:
    """Return all sorted (step, value) except system metrics."""
    client = mlflow.MlflowClient(uri)
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
    return {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}


def status(run_id: str | None, uri: str | None = None) -> str:
    return str(mlflow.MlflowClient(uri).get_run(str(run_id)).info.status)


def newest_run() -> str:
    runs = mlflow.search_runs(["0"], output_format="list")
    return str(max(runs, key=lambda run: run.info.start_time).info.run_id)
