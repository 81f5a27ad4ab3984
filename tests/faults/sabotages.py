"""Mistakes that would lose a checkpoint, each with its test.

python tests/faults/sabotages.py FOLDER

A mistake is a change of the text of one module, made in a copy of the package. The program loads the heavy libraries once and
forks for each mistake; it prints a line of JSON for each: its name, whether all tests pass on an untouched
copy, and whether its own passes on the changed one.
"""

import importlib
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Sabotage:
    """A mistake: in ``file`` stands ``new`` in place of ``old``; ``test`` has to fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


STAGING, STORE, COMMITTER = (f"mltrain/checkpoint/{name}.py" for name in ("staging", "store", "committer"))
PUBLISHING, SNAPSHOT = "mltrain/checkpoint/publishing.py", "mltrain/checkpoint/snapshot.py"
DURABLE, REMOVAL, LATE_COPY = "mltrain/store/durable.py", "mltrain/store/removal.py", "mltrain/checkpoint/late_copy.py"

SABOTAGES = (
    Sabotage(
        "the lease is not asked for before a checkpoint gets its name",
        COMMITTER,
        "return stage(self._store, snapshot, manifest, extra, self._require_lease, stream=self._stream)",
        "return stage(self._store, snapshot, manifest, extra, stream=self._stream)",
        "checkpoint/test_committer.py::test_an_attempt_that_is_overtaken_while_it_writes_makes_nothing_visible",
    ),
    Sabotage(
        "the lease is asked for before the upload, and not before its manifest",
        PUBLISHING,
        "    require_lease()\n    store.artifacts.upload(staged / FILE_NAME, folder)\n",
        "    store.artifacts.upload(staged / FILE_NAME, folder)\n",
        "checkpoint/test_committer.py::test_an_attempt_that_is_overtaken_while_it_uploads_commits_nothing",
    ),
    Sabotage(
        "files are not flushed",
        DURABLE,
        "content, digest.update)\n        os.fsync(opened.fileno())\n",
        "content, digest.update)\n",
        "checkpoint/test_staging.py::test_everything_is_flushed_before_the_name_is_given",
    ),
    Sabotage(
        "the folder of the checkpoints is not flushed",
        DURABLE,
        "    try:\n        _fsync_folder(target.parent)\n",
        "    try:\n        pass\n",
        "checkpoint/test_staging.py::test_everything_is_flushed_before_the_name_is_given",
    ),
    Sabotage(
        "written in place, without a rename",
        STAGING,
        'Staging(self.root / f"{identity.name}.{secrets.token_hex(4)}.tmp")',
        "Staging(self.root / identity.name)",
        "checkpoint/test_staging.py::test_while_it_is_being_written_it_does_not_look_like_a_checkpoint",
    ),
    Sabotage(
        "an older checkpoint of the same name is overwritten",
        DURABLE,
        '        raise FileExistsError(errno.EEXIST, "a checkpoint of this attempt and step exists already", str(target))\n',
        "        discard_staged(target)\n",
        "checkpoint/test_staging.py::test_a_checkpoint_is_never_overwritten",
    ),
    Sabotage(
        "the manifest is uploaded first",
        PUBLISHING,
        "    for names in filter(None, (data, parts)):\n"
        "        require_lease()\n"
        "        store.artifacts.upload_all([staged / name for name in names], folder, sent)\n",
        "    store.artifacts.upload(staged / FILE_NAME, folder)\n"
        "    for names in filter(None, (data, parts)):\n"
        "        require_lease()\n"
        "        store.artifacts.upload_all([staged / name for name in names], folder, sent)\n"
        "    return\n",
        "checkpoint/test_publishing.py::test_an_upload_ends_with_the_manifest",
    ),
    Sabotage(
        "the folder is uploaded in one call",
        PUBLISHING,
        "    for names in filter(None, (data, parts)):\n"
        "        require_lease()\n"
        "        store.artifacts.upload_all([staged / name for name in names], folder, sent)\n",
        "    store.artifacts._repository.log_artifacts(str(staged), folder)\n    return\n",
        "checkpoint/test_publishing.py::test_an_upload_that_fails_anywhere_is_no_checkpoint_and_can_be_repeated",
    ),
    Sabotage(
        "the next snapshot takes memory that is still being sent",
        COMMITTER,
        "        self._stream.release()",
        "        pass",
        "checkpoint/test_staging_upload.py::test_a_slow_store_gets_the_state_of_the_boundary_and_holds_up_no_training",
    ),
    Sabotage(
        "what was sent while it was staged is not looked up",
        "mltrain/store/remote.py",
        "        stored = {entry.name: entry.size for entry in self.entries(folder)}\n",
        "        stored = {**sizes}\n",
        "checkpoint/test_staging_upload.py::test_what_arrives_short_is_noticed_and_sent_again",
    ),
    Sabotage(
        "the parts of other machines are not looked up before the manifest",
        PUBLISHING,
        "    if manifest.shards:\n        _refuse_without_parts(store, manifest)\n",
        "",
        "checkpoint/test_shards.py::test_machines_publish_what_they_have_staged_and_the_last_one_commits",
    ),
    Sabotage(
        "digests are not compared",
        "mltrain/checkpoint/verified_files.py",
        "        if sha256_of(content) != entry.sha256:\n",
        "        if False:\n",
        "checkpoint/test_verified_files.py::test_a_single_flipped_bit_in_any_file_is_found_before_anything_is_deserialised",
    ),
    Sabotage(
        "a memory of manifests is believed",
        STORE,
        "        try:\n            if known is not None and self.artifacts.local_root is None:\n",
        "        if known is not None:\n            self._known[identity] = known\n            return known.manifest\n"
        "        try:\n            if known is not None and self.artifacts.local_root is None:\n",
        "checkpoint/test_store.py::test_a_checkpoint_that_somebody_else_removed_is_not_remembered",
    ),
    Sabotage(
        "the staged copy goes with the upload",
        PUBLISHING,
        "        if earlier.id.order < manifest.id.order:\n",
        "        if earlier.id.order <= manifest.id.order:\n",
        "checkpoint/test_publishing.py::test_the_staged_copy_stays_until_a_later_one_is_committed",
    ),
    Sabotage(
        "data are removed before the manifest",
        REMOVAL,
        "        (folder / MANIFEST).unlink(missing_ok=True)\n        with os.scandir(folder) as entries:\n"
        "            for entry in entries:\n                if not entry.is_dir(follow_symlinks=False):\n",
        "        with os.scandir(folder) as entries:\n"
        "            for entry in sorted(entries, key=lambda entry: entry.name == MANIFEST):\n"
        "                if not entry.is_dir(follow_symlinks=False):\n",
        "checkpoint/test_store.py::test_a_removal_that_was_cut_short_leaves_no_checkpoint",
    ),
    Sabotage(
        "pruned and announced before the commit",
        COMMITTER,
        "            try:\n                earlier = self._backlog.worth_uploading_before(staged)\n",
        "            for listener in self._listeners:\n                listener(staged, None, self._store)\n"
        "            try:\n                earlier = self._backlog.worth_uploading_before(staged)\n",
        "checkpoint/test_committer.py::test_what_could_not_be_uploaded_stays_staged_until_a_later_one_is_committed",
    ),
    Sabotage(
        "a failing disk is not recorded",
        COMMITTER,
        "            self._give_up(draft, error)\n",
        "            self.failure = None\n",
        "checkpoint/test_committer_disk.py::test_a_full_disk_does_not_end_the_training_and_is_kept_as_the_reason",
    ),
    Sabotage(
        "the buffers of batch norm are copied later",
        SNAPSHOT,
        "            copies[name] = buffer\n",
        '            copies[name] = tensor if "running_" in name else buffer\n',
        "checkpoint/test_committer.py::test_what_is_written_is_the_state_of_the_boundary_whatever_the_next_steps_do",
    ),
    Sabotage(
        "the state of the optimizers is copied later",
        SNAPSHOT,
        "            copies[name] = buffer\n",
        '            copies[name] = tensor if "exp_avg" in name else buffer\n',
        "checkpoint/test_committer.py::test_what_is_written_is_the_state_of_the_boundary_whatever_the_next_steps_do",
    ),
    Sabotage(
        "the optimizers do not wait for what is copied late",
        LATE_COPY,
        "register_optimizer_step_pre_hook(before_step)",
        "register_optimizer_step_pre_hook(lambda *_: None)",
        "checkpoint/test_late_copy.py::test_what_is_copied_late_is_the_state_of_the_boundary",
    ),
)


CHOSEN = (
    SABOTAGES
    if os.environ.get("MLTRAIN_SWEEP") == "full"
    else tuple(random.Random(int(os.environ.get("MLTRAIN_SEED", "1"))).sample(SABOTAGES, 5))
)
"""A sample, as each takes seconds; all with ``MLTRAIN_SWEEP=full``."""


def passed(copy: Path, tests: Iterable[str]) -> bool:
    """Run tests in a copy of the repository."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            places = [f"tests/{test}" for test in tests]
            code = int(pytest.main(["-q", "-x", "-c", os.devnull, "--rootdir", str(copy), *places]))
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to read of it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):  # neither passed nor failed
        raise RuntimeError(f"{tests}: {code}: {(copy / 'output').read_text()[-2000:]}")
    return code == 0


def copied(folder: Path) -> Path:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "faults", "projects", "golden")
    for name in ("mltrain", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def main(folder: Path) -> None:
    """Make each chosen mistake in its own copy below ``folder``."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for module in ("mlflow.store.artifact.local_artifact_repo", "numpy", "pandas", "psutil", "pydantic", "torch"):
        importlib.import_module(module)
    untouched = passed(copied(folder / "untouched"), sorted({sabotage.test for sabotage in CHOSEN}))
    for number, sabotage in enumerate(CHOSEN):
        copy = copied(folder / str(number))
        file = copy / sabotage.file
        text = file.read_text(encoding="utf-8")
        if (count := text.count(sabotage.old)) != 1:
            raise RuntimeError(f"{sabotage.name}: the place in {sabotage.file} is there {count} times; it was changed")
        file.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")
        after = passed(copy, [sabotage.test])
        print(json.dumps({"name": sabotage.name, "before": untouched, "after": after}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
