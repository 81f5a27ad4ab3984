from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mltrain
from mltrain.config import Config
from mltrain.rng import seed_everything
from projects.cardiac import chain
from tests.projects.cardiac.conftest import Study


def configured(stage: str, study: Study) -> Config:
    kind, _ = chain.STAGES[stage]
    return kind.load(
        overrides={
            **{name: place for name, place in study.keys().items() if name in kind.model_fields},
            "epochs": 2,
            "batch_size": 2,
        }
    )


def built(stage: str, config: Config) -> mltrain.Task:
    seed_everything(config.seed)
    return chain.STAGES[stage][1](config)


@pytest.mark.parametrize("stage", chain.STAGES)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_that_was_handed_over_ends_with_the_same_weights(study: Study, stage: str, steps: int) -> None:
    """In the middle of an epoch and at its end."""

    def run(handed_over_after: int) -> dict[str, torch.Tensor]:
        config = configured(stage, study)
        task = built(stage, config)
        for index in range(4):
            if index == handed_over_after:
                other = built(stage, config)
                for name, part in task.step.parts().items():
                    other.step.parts()[name].load_state_dict(part.state_dict())
                other.loader.load_state_dict(task.loader.state_dict())
                task = other
            task.step(next(iter(task.loader)))
        return {name: tensor.clone() for name, tensor in task.step.parts()["model"].state_dict().items()}

    undisturbed, handed_over = run(-1), run(steps)
    assert undisturbed.keys() == handed_over.keys()
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, handed_over[name]), name


@pytest.mark.parametrize("stage", chain.STAGES)
def test_an_evaluation_says_the_same_twice_and_names_the_metric_that_is_best(study: Study, stage: str) -> None:
    config = configured(stage, study)
    task = built(stage, config)
    assert task.evaluate is not None
    first = dict(task.evaluate())
    assert first == dict(task.evaluate())
    assert config.best_metric in first
    assert all(name.startswith("val/") for name in first)
    assert all(value == value for value in first.values())  # no NaN: a run would keep it


def test_weights_are_left_as_they_are_pulled(study: Study) -> None:
    assert {file.name for file in study.motion.iterdir()} == {"model.safetensors", "params.json"}
    assert all(name.startswith("purposes.refined_motion.") for name in load_file(study.motion / "model.safetensors"))


def test_the_schedule_ends_with_the_last_epoch(study: Study) -> None:
    config = configured("motion", study)
    task = built("motion", config)
    assert isinstance(task.step, mltrain.Supervised)
    rates = []
    for _ in range(config.epochs):
        for batch in task.loader:
            task.step(batch)
            rates.append(task.step.learning_rate)
    assert rates[-1] == min(rates) < 1e-6


def test_training_a_stage_twice_gives_the_same(study: Study, tmp_path: Path) -> None:
    given = {"prepared": study.prepared, "num_threads": 1, "epochs": 1}
    one, other = (chain.train("registration", None, tmp_path / name, **given) for name in ("one", "other"))
    assert one == other
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()
