"""Compares nuclei with a plain loop and a threshold. See docs/segmentation.md."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_otsu
from torch.nn import functional as F

from projects.segmentation.pixels import read_image
from projects.segmentation.predict import Segmenter
from projects.segmentation.project import Config, build

SEEDS = (0, 1, 2)
SIDE, TRAIN, TEST = 96, 288, 320
"""Tiles of this side are cut from the first columns; columns from the last number on are judged, and no tile has them."""

EPOCHS = 40
Picture = NDArray[np.uint16]
Mask = NDArray[np.bool_]


def nuclei() -> tuple[Picture, Picture]:
    """Return stardist's fluorescence picture (512, 512) and its labelled nuclei."""
    package = find_spec("stardist")
    if package is None or package.origin is None:
        pytest.skip("the picture of nuclei is not there: pip install --no-deps stardist==0.9.2")
    folder = Path(package.origin).parent / "data" / "images"
    picture, labels = (np.asarray(Image.open(folder / name)) for name in ("img2d.tif", "mask2d.tif"))
    return picture.astype(np.uint16), labels.astype(np.uint16)


def cut(picture: Picture, labels: Picture, folder: Path) -> None:
    """Write tiles of the first columns as a user's folders."""
    for name, array in (("images", picture), ("masks", labels)):
        (folder / name).mkdir(parents=True)
        for top in range(0, len(array) - SIDE + 1, 52):
            for left in range(0, TRAIN - SIDE + 1, 48):
                tile = Image.fromarray(array[top : top + SIDE, left : left + SIDE])
                tile.save(folder / name / f"r{top // 104:02d}_{top:03d}_{left:03d}.png")


def ours(folder: Path, picture: Picture, seed: int) -> Mask:
    """Train on the tiles; return the nuclei of the picture."""
    torch.manual_seed(seed)
    given = {"image_path": folder / "images", "gt_path": folder / "masks", "foreground": "nonzero", "seed": seed}
    augmented = {"quarter_turns": True, "brightness": 0.2, "noise": 0.1}
    task = build(
        Config.load(overrides={**given, **augmented, "epochs": EPOCHS, "empty_masks": "keep", "device": "cpu"})
    )
    for _ in range(EPOCHS):
        for batch in task.loader:
            task.step(batch)
    Image.fromarray(picture).save(folder / "whole.png")
    segmenter: Segmenter = task.report.segmenter  # type: ignore[union-attr]
    with torch.no_grad():
        return np.asarray(segmenter.classes(segmenter.logits(read_image(folder / "whole.png"))) > 0)


def plain(folder: Path, picture: Picture, labels: Picture, seed: int) -> Mask:
    """Train the same network as long in a plain loop. Returns the nuclei of the whole picture."""
    torch.manual_seed(seed)
    files = sorted((folder / "images").iterdir())
    tiles = torch.stack([torch.from_numpy(read_image(file)) for file in files])
    masks = torch.stack([torch.from_numpy(read_image(folder / "masks" / file.name) > 0).float() for file in files])
    mean, std = tiles.mean(), tiles.std()
    net = UNet(2, 1, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="batch")
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(tiles)).split(8):
            inputs, targets = (tiles[chosen] - mean) / std, masks[chosen]
            for axis in (-1, -2):
                if torch.rand(()) < 0.5:
                    inputs, targets = inputs.flip(axis), targets.flip(axis)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(inputs), targets).backward()
            optimizer.step()
    whole = (torch.from_numpy(read_image(folder / "whole.png"))[None] - mean) / std
    with torch.no_grad():
        return np.asarray(net.eval()(whole)[0, 0].numpy() > 0)


def iou(found: Mask, labels: Picture) -> float:
    """Return the intersection over union outside the tiles."""
    found, true = found[:, TEST:], labels[:, TEST:] > 0
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nuclei_are_found_at_the_pictures_own_scale_at_least_as_well_as_by_the_baselines(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    picture, labels = nuclei()
    threshold = iou(picture > threshold_otsu(picture[:, :TRAIN]), labels)
    rows = []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        cut(picture, labels, folder)
        found = {"ours": iou(ours(folder, picture, seed), labels)}
        rows.append({**found, "plain loop": iou(plain(folder, picture, labels, seed), labels), "Otsu": threshold})
        print(seed, rows[-1], flush=True)
    table = pd.DataFrame(rows, index=SEEDS)
    assert (table["ours"] > 0.87).all()
    assert (table["ours"] > table["plain loop"] - 0.01).all()
    assert (table["ours"] > table["Otsu"] + 0.15).all()
