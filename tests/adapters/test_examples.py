"""The examples of other engines: what they add, and that they end and continue."""

import sys
from pathlib import Path

import mlflow
import pytest

from projects import accelerate_loop, huggingface
from projects.accelerate_loop import loop
from projects.huggingface import finetune


@pytest.mark.parametrize(
    ("package", "file", "lines"), [(huggingface, "finetune.py", 4), (accelerate_loop, "loop.py", 9)]
)
def test_what_an_example_adds_is_few_lines(package: object, file: str, lines: int) -> None:
    source = Path(str(package.__file__)).with_name(file)  # type: ignore[attr-defined]
    assert sum(line.endswith("# +") for line in source.read_text(encoding="utf-8").splitlines()) <= lines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_example_of_transformers_learns_and_continues(tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = finetune.main(epochs=2)
    assert finetune.main(run_id, epochs=4) == run_id
    run = mlflow.get_run(str(run_id))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval_accuracy"] > 0.9


def test_the_loop_on_accelerate_learns_and_continues(tracking: str, capsys: pytest.CaptureFixture[str]) -> None:
    loop.main(epochs=5)
    run_id = capsys.readouterr().out.splitlines()[0].removeprefix("run_id=")
    loop.main(run_id, epochs=30)
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert [point.step for point in mlflow.MlflowClient().get_metric_history(run_id, "accuracy")] == [*range(8, 241, 8)]
    assert sys.argv  # the script's own name names the run
