"""Learning rates in a configuration."""

from typing import Self

import pytest
from pydantic import BaseModel, computed_field, model_validator

from mltrain.config import Config
from mltrain.errors import ConfigError


class Unbounded(BaseModel):
    learning_rate: float = 0.1


class Rates(Config):
    lr: float = 0.1
    head: Unbounded = Unbounded()


@pytest.mark.parametrize("key", ["lr", "head.learning_rate"])
@pytest.mark.parametrize("rate", ["nan", "inf", "-0.1"])
def test_a_learning_rate_that_no_optimizer_can_use_is_refused(key: str, rate: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}={rate} is not accepted. Expected a finite learning rate"):
        Rates.load(overrides={key: rate})
    assert Rates.load(overrides={key: "0"})


class Halves(Config):
    lr: float = -1.0
    parts: int = 1

    @computed_field
    def size(self) -> float:
        return 1 / self.parts

    @model_validator(mode="after")
    def _fill(self) -> Self:
        if not self.parts:
            raise ValueError("parts must not be 0")
        if self.lr == -1.0:
            object.__setattr__(self, "lr", self.size)
        return self


def test_the_learning_rate_is_checked_after_the_validators_of_a_project() -> None:
    assert Halves.load(overrides={"parts": "2"}).lr == 0.5
    with pytest.raises(ConfigError, match="parts must not be 0"):
        Halves.load(overrides={"parts": "0"})
