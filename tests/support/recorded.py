"""What the runs of this process's tracking store recorded."""

import mlflow


def points(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points but those of the machine."""
    client = mlflow.MlflowClient()
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
    return {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}


def status(run_id: str | None) -> str:
    return str(mlflow.get_run(str(run_id)).info.status)


def newest_run() -> str:
    runs = mlflow.search_runs(["0"], output_format="list")
    return str(max(runs, key=lambda run: run.info.start_time).info.run_id)
