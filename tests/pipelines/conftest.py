import pytest

from tests.support.example_pipelines import TinyPipeline
from tests.support.workplace import Workplace


@pytest.fixture
def tiny(workplace: Workplace) -> TinyPipeline:
    return TinyPipeline(workplace)
