"""Every module has a mirroring test file or a reason."""

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "mltrain"
DECLARATIONS = "declares names or protocols and does nothing"
ELSEWHERE = {
    "adapters/lightning_loops.py": "adapters/test_lightning.py",
    "adapters/lightning_parts.py": "adapters/test_lightning.py",
    "adapters/position.py": "adapters/test_accelerate.py",
    "checkpoint/ports.py": DECLARATIONS,
    "commands/ending.py": "commands/test_train.py",
    "commands/evaluate.py": "cli/test_model.py",
    "commands/following.py": "distributed/test_training.py",
    "commands/logged_model.py": "cli/test_model.py",
    "commands/result.py": DECLARATIONS,
    "delivery/media.py": "run/test_ending.py",
    "distributed/gradients.py": "distributed/test_world.py",
    "distributed/loading.py": "distributed/test_sharding.py",
    "distributed/parts.py": "distributed/test_remote_store.py",
    "distributed/pieces.py": "distributed/test_sharding.py",
    "distributed/saving.py": "distributed/test_sharding.py",
    "distributed/task.py": "distributed/test_training.py",
    "store/names.py": DECLARATIONS,
    "testing/killing.py": "faults/test_random_kills.py",
    "tracking/run_artifacts.py": "run/test_opening.py",
    "trainer/ports.py": DECLARATIONS,
}
"""Modules whose statements are about what uses them: where those statements are."""


def modules() -> dict[str, str]:
    """Return each module with its mirroring test file."""
    found = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if not file.stem.startswith("__")]
    return {path.as_posix(): (path.parent / f"test_{path.name}").as_posix() for path in found}


def test_every_module_has_its_test_file_or_is_listed() -> None:
    missing = [module for module, mirror in modules().items() if not (TESTS / mirror).is_file()]
    assert sorted(set(missing) - ELSEWHERE.keys()) == []


def test_the_list_names_nothing_that_is_gone_or_mirrored() -> None:
    known = modules()
    assert [module for module in ELSEWHERE if module not in known] == []
    assert [module for module in ELSEWHERE if (TESTS / known[module]).is_file()] == []
    assert [file for file in ELSEWHERE.values() if file != DECLARATIONS and not (TESTS / file).is_file()] == []
