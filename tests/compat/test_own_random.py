"""Client libraries draw from random numbers of their own."""

import importlib
import random
import subprocess
import sys
from collections.abc import Callable

import botocore.retries.standard
import pytest
import s3transfer.utils
import tenacity
from mlflow.utils.name_utils import _generate_random_name
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from mltrain.compat import own_random

DRAWS: dict[str, Callable[[], object]] = {
    "s3transfer": lambda: s3transfer.utils.random_file_extension(),
    "botocore": lambda: botocore.retries.standard.ExponentialBackoff().delay_amount(
        botocore.retries.standard.RetryContext(attempt_number=2)
    ),
    "mlflow": _generate_random_name,
    "tenacity": lambda: tenacity.wait_random(0, 1)(tenacity.RetryCallState(None, None, (), {})),  # type: ignore[arg-type]
    "opentelemetry": lambda: RandomIdGenerator().generate_trace_id(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_library_leaves_the_training_s_random_numbers_alone(name: str) -> None:
    before = random.getstate()
    DRAWS[name]()
    assert random.getstate() == before


def test_modules_imported_before_and_after_are_changed_alike() -> None:
    code = (
        "import random, sys\n"
        "import tenacity.wait\n"
        "import mltrain.compat\n"
        "import s3transfer.utils, opentelemetry.sdk.metrics._internal.exemplar.exemplar_reservoir as reservoir\n"
        "state = random.getstate()\n"
        "s3transfer.utils.random.choice('ab'), tenacity.wait.random.uniform(0, 1), reservoir.randrange(9)\n"
        "print(random.getstate() == state, s3transfer.utils.random.Random is random.Random)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "True True\n", done.stderr


def test_it_is_installed_once_and_leaves_other_modules_alone() -> None:
    before = list(sys.meta_path)
    own_random.install()
    assert sys.meta_path == before
    assert importlib.import_module("torch.utils.data._utils.worker").random is random
