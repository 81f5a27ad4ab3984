"""How far style moved and how much content stayed, on held-out crops and without any downloaded network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from mltrain.rng import own_rng
from projects.style_transfer.classifier import share_named, trained_classifier
from projects.style_transfer.losses import patch_distance, structure_distance
from projects.style_transfer.pictures import random_crops
from projects.style_transfer.step import Energy
from projects.style_transfer.translator import Translator

_SEED = 20
_PROJECTIONS = 128
_BRIGHTNESS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What the translation of held-out crops of one style into another was found to be.

    ``swd`` is the sliced Wasserstein distance of patches to a reference; ``swd_identity`` is that of the crops before
    translation, and ``swd_floor`` what crops of the training works of the target get. The reference is held-out works
    of the target, and with ``_train`` in the name its training works: all that the network can know of the style.
    """

    source: str
    target: str
    swd: float
    swd_identity: float
    swd_floor: float
    swd_train: float
    swd_train_identity: float
    swd_train_floor: float
    ssm: float
    """Distance of the self-similarities of output and source; 0 where the content is the same."""
    ssm_chance: float
    """That of the source and unrelated crops of the target style."""
    ssim: float
    """Structural similarity of output and source in brightness (Wang et al. 2004); 1 where they are the same."""
    style_accuracy: float
    """Share of the outputs that a classifier takes for the target style."""


class Judgement:
    """Translates held-out crops of every style into every other and measures what comes out.

    The crops, the projections and the classifier are the same each time. Only its own random numbers are used.

    Args:
        translator: what is judged.
        energy: weighs style and content in ``val/loss``.
        train: pictures of each style to learn from, (3, H, W) uint8.
        held_out: pictures of other works of each style.
        side: of the crops, in pixels.
        crops: how many of each style.
        classifier_steps: how long the classifier is trained, when it is first needed.

    """

    def __init__(
        self,
        translator: Translator,
        energy: Energy,
        train: Sequence[Sequence[Tensor]],
        held_out: Sequence[Sequence[Tensor]],
        *,
        side: int,
        crops: int,
        classifier_steps: int,
    ) -> None:
        self._translator = translator
        self._energy = energy
        self._train = train
        self._side = side
        self._classifier_steps = classifier_steps
        with own_rng(_SEED):
            self._sources = [random_crops(style, side, crops) for style in held_out]
            self._wanted = [random_crops(style, side, 2 * crops) for style in held_out]
            self._learnt = [random_crops(style, side, 2 * crops) for style in train]
            self._learnt_too = [random_crops(style, side, 2 * crops) for style in train]

    @cached_property
    def classifier(self) -> nn.Module:
        """The judge of styles, trained on crops of the training works."""
        return trained_classifier(self._train, self._side, self._classifier_steps)

    def __call__(self) -> dict[str, float]:
        """Return the means over all pairs as ``val/swd`` and so on, ``val/round_trip`` and ``val/loss``."""
        return self.summary(self.pairs())

    def pairs(self) -> list[PairScores]:
        """Return the scores of every pair of two styles."""
        styles = range(len(self._sources))
        scores = []
        for source in styles:
            targets = [style for style in styles if style != source]
            made = self._translator.translate(self._sources[source], source, targets)
            scores += [self._scores(source, target, image) for target, image in zip(targets, made, strict=True)]
        return scores

    def summary(self, pairs: Sequence[PairScores]) -> dict[str, float]:
        """Return what :meth:`__call__` does, of pairs that were scored before."""
        names = [field.name for field in fields(PairScores) if field.name not in ("source", "target")]
        means = {name: float(np.mean([getattr(pair, name) for pair in pairs])) for name in names}
        styles = range(len(self._sources))
        real = [share_named(self.classifier, self._sources[style], style) for style in styles]
        back = [self._translator.round_trip(self._sources[style], style) for style in styles]
        return {
            "val/loss": self._energy.style * means["swd_train"] + self._energy.content * means["ssm"],
            **{f"val/{name}": value for name, value in means.items()},
            "val/style_accuracy_real": float(np.mean(real)),
            "val/round_trip": float(np.mean(back)),
        }

    def _scores(self, source: int, target: int, made: Tensor) -> PairScores:
        given, wanted = self._sources[source], self._wanted[target]
        learnt, learnt_too = self._learnt[target], self._learnt_too[target]
        return PairScores(
            source=self._translator.styles[source],
            target=self._translator.styles[target],
            swd=self._distance(made, wanted),
            swd_identity=self._distance(given, wanted),
            swd_floor=self._distance(learnt, wanted),
            swd_train=self._distance(made, learnt),
            swd_train_identity=self._distance(given, learnt),
            swd_train_floor=self._distance(learnt_too, learnt),
            ssm=self._structure(made, given),
            ssm_chance=self._structure(wanted[: len(given)], given),
            ssim=_ssim(made, given),
            style_accuracy=share_named(self.classifier, made, target),
        )

    @torch.no_grad()
    def _distance(self, one: Tensor, other: Tensor) -> float:
        """Of pictures as they are seen: images (B, 3, H, W), in the latents of the codec, where texture counts."""
        with own_rng(_SEED):
            encoded = self._translator.encode(one), self._translator.encode(other)
            return float(patch_distance(*encoded, projections=_PROJECTIONS))

    @torch.no_grad()
    def _structure(self, one: Tensor, other: Tensor) -> float:
        return float(structure_distance(self._translator.encode(one), self._translator.encode(other)))


def _ssim(made: Tensor, given: Tensor) -> float:
    """Return the mean structural similarity of images (B, 3, H, W) in brightness."""
    pairs = zip(*(np.tensordot(images.numpy(), _BRIGHTNESS, (1, 0)) for images in (made, given)), strict=True)
    return float(np.mean([structural_similarity(one, other, data_range=1.0) for one, other in pairs]))
