"""Walks through the pages of the documentation: preparations, small commands, and checks of what a page shows."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs
from tests.support.pages import DOCS, blocks, commands, execute
from tests.support.reader import Reader
from tests.support.reader_data import pictures, recordings, study, styles

PAGES = {page.stem: page for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))) if commands(page)}

ON_POSTGRES = "mlflow server --backend-store-uri postgresql://mlflow:PASSWORD@127.0.0.1/mlflow"

NOT_TYPED = {
    "make train": "builds an environment; the training that it starts is an mlflow run, which is typed",
    "make test": "runs all other tests",
    ". .venv/bin/activate": "is of the shell; these tests run in that environment",
    "pip install mlflow uv": "needs a package registry",
    "mlflow run . --env-manager uv -P epochs=20": "needs uv and a package registry",
    "pip install -c constraints.txt .": "needs a package registry",
    "pip install -c constraints.txt '.[projects]'": "needs a package registry",
    "createdb mlflow": "needs PostgreSQL: make servers types it",
    f"{ON_POSTGRES} --artifacts-destination ./artifacts": "needs PostgreSQL: make servers types it",
    f"{ON_POSTGRES} --artifacts-destination s3://bucket/mlflow": "needs PostgreSQL and S3: make servers types it",
    "sbatch --requeue --signal=USR1@300 --wrap 'srun mltrain train my_project.py --run-key auto'": "needs Slurm",
    "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --requeue --signal=USR1@300": (
        "needs Slurm; test_what_launchers_start_is_a_command_that_there_is parses it"
    ),
}
"""Commands that no test types, each with its reason."""

SMALL = {
    r"^(mltrain train segmentation)$": r"\1 sample=blobs image_size=32",
    r"^(mltrain train segmentation.*)": r"\1 epochs=1",
    r"^(mltrain train tool_wear(?!.*preset).*)": r"\1 --preset quick",
    r"^(mltrain train tool_wear.*)": r"\1 epochs=1 cuts=20 hidden=8 kernels=8 rocket_kernels=0",
    r"^(mltrain train (?:projects/)?style_transfer(?!.*preset).*)": r"\1 --preset quick",
    r"^(mltrain train style_transfer.*)": r"\1 epochs=1 steps_per_epoch=2 eval_crops=2 classifier_steps=5 num_steps=2",
    r"^(mltrain train \S*autoencoder.*)": r"\1 epochs=1",
    r"epochs=60|epochs=12": "epochs=2",
    r"--processes 4": "--processes 2",
    r"processes=4": "processes=2",
    r"^(mltrain ui ID)": r"\1 --no-open",
}
"""Replacements that make the commands of every page small, by regular expression."""


def nothing(_: Reader) -> None:
    pass


@dataclass(frozen=True)
class Walk:
    """How to type the commands of a page.

    Attributes:
        given: prepares what the page takes for granted, such as folders of pictures.
        small: replacements that make its commands small.
        shown: compares the blocks of text on the page with the result.
        slow: whether the walk takes more than ten seconds.
    """

    given: Callable[[Reader], None] = nothing
    small: dict[str, str] = field(default_factory=dict)
    shown: Callable[[Reader], None] = nothing
    slow: bool = True


def my_project(reader: Reader) -> None:
    (reader.folder / "my_project.py").write_text(blocks(PAGES["README"], "python")[0], encoding="utf-8")


def is_written(block: str, folder: Path, *without: str) -> None:
    """Check that the files of a block's first column exist. Entries are like ``masks/STEM.png`` or ``roc.csv .png``."""
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*.*")]
    listed = re.findall(r"^([\w/]+)(\.\w+)(?: (\.\w+))?  ", block, re.MULTILINE)
    assert listed
    for name in [stem + ending for stem, *endings in listed for ending in endings if ending]:
        if name not in without:
            pattern = r"(.*/)?" + name.replace("STEM", "[^/]+")
            assert any(re.fullmatch(pattern, file) for file in files), f"{name} is not among {files}"


def masked(text: str) -> str:
    """Return a text with every number replaced."""
    return re.sub(r"\d+(\.\d+)?", "N", text)


def is_shown(block: str, printed: str, reader: Reader) -> None:
    """Compare a block's lines with printed ones, except numbers. ``/home/me`` means the checkout."""
    printed = printed.replace(str(reader.folder), "/home/me")
    lines = {masked(line.strip()) for line in printed.splitlines()}
    missing = [line for line in block.splitlines() if masked(line.strip()) not in lines]
    assert not missing, f"{missing}\nare not in\n{printed}"


def made(reader: Reader) -> None:
    """Do as ``make train`` does, with the quick preset."""
    (launch,) = (command for command in commands(PAGES["README"]) if "preset=quick" in command)
    reader.type(launch, WALKS["README"].small)


def readme(reader: Reader) -> None:
    assert (reader.folder / "evaluation" / "per_image.csv").is_file()
    assert (reader.folder / "model" / "model.safetensors").is_file()


def segmentation(reader: Reader) -> None:
    error, lines, report = blocks(PAGES["segmentation"], "text")
    quick = next(done for command, done in reader.typed.items() if "--preset quick" in command)
    assert lines in quick.out + quick.err
    own = reader.folder / "own"
    Blobs(height=32, width=32).write(FolderPair(images=own / "img", masks=own / "gt"), 3, seed=3)
    first, *_ = sorted((own / "img").iterdir())
    first.rename(own / "img" / "scan1.jpg")
    (own / "gt" / first.name).rename(own / "gt" / "extra.png")
    refused = reader.type("mltrain train segmentation image_path=own/img gt_path=own/gt", {}, code=2)
    is_shown(error, refused.err, reader)
    reader.type(f"mltrain evaluate {reader.run_id('masks')} --to report", {})
    is_written(report, reader.folder / "report", "per_class.csv")  # of several classes
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader.folder)
        execute("segmentation", 0, {})


def tool_wear(reader: Reader) -> None:
    error, classes, wear = blocks(PAGES["tool_wear"], "text")
    for target, block in (("quick", classes), ("target=wear", wear)):
        reader.type(f"mltrain evaluate {reader.run_id(target)} --to {target}", {})
        is_written(block, reader.folder / target)
    (reader.folder / "phm2010" / "c1" / "c_1_003.csv").write_text("1,2,3\n" * 3000)
    (reader.folder / "phm2010" / "c1" / "c_1_004.csv").write_text("1,2,3,4,5,6,7\n" * 100)
    table = reader.folder / "phm2010" / "c4" / "c4_wear.csv"
    table.write_text(
        "".join(
            line for line in table.read_text().splitlines(keepends=True) if line[:2] not in ("3,", "4,", "5,", "6,")
        )
    )
    refused = reader.type("mltrain train tool_wear data_path=phm2010", {}, code=2)
    is_shown(error, refused.err, reader)


def style_transfer(reader: Reader) -> None:
    assert [file.stem for file in (reader.folder / "translated").iterdir()] == ["a"]


def cardiac(reader: Reader) -> None:
    (layout,) = blocks(PAGES["cardiac"], "text")
    written = {file.relative_to(reader.folder / "study").as_posix() for file in (reader.folder / "study").rglob("*.gz")}
    found = {re.sub(r"slice_\d+", "slice_XX", re.sub(r"phantom_\d+", "CASE", file)) for file in written}
    assert found - {file for file in found if file.startswith("truth")} <= set(
        re.findall(r"^(\S+\.gz)", layout, re.MULTILINE)
    )
    assert any((reader.folder / "report" / "infarct").iterdir())


def cells(reader: Reader) -> None:
    execute("pipelines", 0, {"__name__": "cells"})
    (reader.folder / "cells.py").write_text(blocks(PAGES["pipelines"], "python")[0], encoding="utf-8")


def pipelines(reader: Reader) -> None:
    again = reader.workplace.mltrain("pipeline", "cells.py", "--mode", "skip")
    assert again.out.count(": skip (") == 3, again.out + again.err


def registered(reader: Reader) -> None:
    trained = reader.type("mltrain train tiny.py epochs=1", {})
    reader.type(f"mltrain pull {trained.run_id} --to model --register NAME --alias champion", {})


def night(reader: Reader) -> None:
    reader.type("mltrain train tiny.py epochs=4 experiment=night", {})


def resumed(reader: Reader) -> None:
    (lines,) = blocks(PAGES["resume"], "text")
    is_shown(lines, reader.typed["mltrain train --resume-run ID epochs=10 lr=3e-4"].out, reader)


def pruned(reader: Reader) -> None:
    (plan,) = blocks(PAGES["retention"], "text")
    is_shown(plan, reader.typed["mltrain prune ID --keep 'Latest(2) | Best(1)' --dry-run"].out, reader)
    assert 1 <= len(reader.workplace.checkpoint_names(reader.run_id())) <= 3


STAGE = "epochs=1 num_threads=1 device=cpu"
PHANTOMS = "epochs=1 passes=1 cases=6 frames=6 side=64 num_threads=1"

WALKS = {
    "README": Walk(
        made,
        {
            r"(-P preset=quick)": r"\1 -P epochs=1",
            r"-P processes=4": "-P processes=2 -P preset=quick -P epochs=1 -P image_size=32",
        },
        readme,
    ),
    "cardiac": Walk(
        study,
        {
            r"--preset small --mode resume": f"--preset quick --mode resume {PHANTOMS}",
            r"^(mltrain train projects/cardiac.*) --preset small": rf"\1 --preset quick {STAGE}",
            r"data=study (labels=acdc)": r"data=labelled \1",
            r"data=study ('labels=)": r"data=cine_labelled \1",
            r"^(python -m projects.cardiac.preparation --to prepared)$": r"\1 cases=6 slices=1 frames=6 side=64",
        },
        cardiac,
    ),
    "distributed": Walk(my_project, {r"(batch_size=64)": r"\1 epochs=1", "resume_run=ID": "resume_run=ID -P epochs=2"}),
    "ignite": Walk(),
    "lightning": Walk(),
    "loops": Walk(),
    "own_project": Walk(registered, {r"(mlflow models serve.*)": r"\1 --port PORT --workers 1"}),
    "pipelines": Walk(
        cells,
        {r"(cardiac --preset quick --mode resume)": rf"\1 {PHANTOMS}"},
        pipelines,
    ),
    "resume": Walk(my_project, {}, resumed),
    "retention": Walk(night, {}, pruned, slow=False),
    "segmentation": Walk(pictures, {}, segmentation),
    "servers": Walk(
        small={
            r"--host 0.0.0.0 --port 5000": "--host 127.0.0.1 --port PORT",
            r"trainer\.example:5000": "127.0.0.1:PORT",
        }
    ),
    "style_transfer": Walk(styles, {"STYLE": "engraving", "epoch:4": "epoch:1"}, style_transfer),
    "tool_wear": Walk(
        recordings,
        {
            r"data_path=phm2010 epochs=30": "data_path=phm2010 epochs=1 hidden=8 kernels=8 rocket_kernels=0 window_steps=32"
        },
        tool_wear,
    ),
}
