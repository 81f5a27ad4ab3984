from pathlib import Path

import mlflow

from projects.ignite_spirals import train
from tests.adapters.conftest import tracking  # noqa: F401


def test_the_example_of_ignite_trains_and_continues(tracking: str) -> None:  # noqa: F811
    assert Path(train.__file__).read_text(encoding="utf-8").count("# +") == 2  # in its docstring and at its line
    run_id = train.main(epochs=1)
    assert train.main(f"mltrain:{run_id}", epochs=2) == run_id
    history = mlflow.MlflowClient().get_metric_history(str(run_id), "accuracy")
    assert [point.step for point in history] == [8, 16]
