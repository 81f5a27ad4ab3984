"""Translation of a folder of pictures into another style.

As a command::

    python -m projects.style_transfer.translate --run RUN_ID --input pictures --to STYLE --output translated
"""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mltrain import device as devices
from mltrain.errors import DataError, MltrainError
from mltrain.rng import own_rng
from mltrain.run.checkpoints import open_checkpoints
from projects.segmentation.folders import pictures_in
from projects.style_transfer.flow import even_times
from projects.style_transfer.pictures import as_pixels, read_pictures
from projects.style_transfer.project import Config, restored
from projects.style_transfer.translator import Translator


def load_translator(run_id: str, checkpoint: str = "best", device: str = "auto") -> Translator:
    """Return a run's translator, loaded from the tracking store.

    Args:
        run_id: id of the run.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        RunNotFound, NoCheckpoint: there is no such run or checkpoint.
        DataError: the run belongs to another project.

    """
    checkpoints = open_checkpoints(run_id)
    _, (parts, params) = checkpoints.load_configured(checkpoint)
    if not {"model", "codec", "styles"} <= parts.keys():
        raise DataError(f"Run {run_id} is not a style transfer: its checkpoints hold {', '.join(sorted(parts))}.")
    translator = restored(Config.load(base=params), parts)
    translator.codec.to(devices.chosen(device))
    translator.net.to(devices.chosen(device))
    return translator


def translate(
    translator: Translator, pictures: Path, to: str, output: Path, *, source: str | None = None, own_size: bool = False
) -> list[Path]:
    """Translate a folder's pictures to PNG files with their stems.

    Args:
        translator: see :func:`load_translator`.
        pictures: a folder of pictures of any size.
        to: name of the target style.
        output: the folder to write to; created if it is missing.
        source: style of the pictures. If ``None``, the most likely style of each picture.
        own_size: keep the size of the pictures. Otherwise their shorter side is scaled to that of the training, at which
            textures have the size that was learnt.

    Raises:
        DataError: there is no such style; the folder holds no picture, two with the same stem, or an unreadable one.

    """
    target = translator.index(to)
    known = None if source is None else translator.index(source)
    files = pictures_in(pictures)
    twice = sorted(stem for stem, count in Counter(file.stem for file in files).items() if count > 1)
    if twice:
        raise DataError(
            f"Several pictures in {pictures} have the stem {', '.join(twice)} and would get the same file. Rename them."
        )
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        (pixels,) = read_pictures([file], None if own_size else translator.short_side)
        image = pixels.float() / 255
        style = translator.likeliest_style(image) if known is None else known
        (made,) = translator.translate(image[None], style, [target])
        written.append(output / f"{file.stem}.png")
        Image.fromarray(as_pixels(made[0])).save(written[-1])
    return written


def main(arguments: list[str] | None = None) -> int:
    """Translate from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.style_transfer.translate", description=__doc__)
    parser.add_argument("--run", required=True, metavar="RUN_ID", help="id of the run that trained the flow")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="folder of pictures")
    parser.add_argument("--to", required=True, metavar="STYLE", help="target style")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--from", dest="source", metavar="STYLE", help="style of the pictures (default: the most likely of each)"
    )
    parser.add_argument("--checkpoint", default="best", help="best, latest, epoch:N or step:N (default best)")
    parser.add_argument("--num-steps", type=int, help="integration steps (default: num_steps of the run)")
    parser.add_argument("--temperature", type=float, help="noise while generating (default: temperature of the run)")
    parser.add_argument("--seed", type=int, default=0, help="seed of that noise (default 0)")
    parser.add_argument("--own-size", action="store_true", help="keep the size of the pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    given = parser.parse_args(arguments)
    try:
        translator = load_translator(given.run, given.checkpoint, given.device)
        flow = translator.flow
        if given.num_steps is not None:
            flow = replace(flow, times=even_times(given.num_steps))
        if given.temperature is not None:
            flow = replace(flow, temperature=given.temperature)
        with own_rng(given.seed):
            written = translate(
                replace(translator, flow=flow),
                given.input,
                given.to,
                given.output,
                source=given.source,
                own_size=given.own_size,
            )
    except MltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{len(written)} pictures are in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
