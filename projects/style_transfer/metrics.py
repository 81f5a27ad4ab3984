"""Scores of style and content of translated held-out crops."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import permutations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from mltrain.rng import own_rng
from projects.style_transfer.baselines import Baseline, baselines
from projects.style_transfer.classifier import share_named, trained_classifier
from projects.style_transfer.losses import patch_distance, structure_distance
from projects.style_transfer.pictures import BRIGHTNESS, random_crops
from projects.style_transfer.step import Energy
from projects.style_transfer.translator import Translator

_SEED = 20
_PROJECTIONS = 128
_BASELINE_CROPS = 128

FLOW = "flow"
"""The name of the trained method in tables, beside those of the baselines."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Scores of a method's translations of one style's held-out crops.

    ``swd`` is the sliced Wasserstein distance of patches to a reference, ``swd_identity`` that of the untranslated
    crops, and ``swd_floor`` that of crops of the target's training works. The reference is held-out works of the
    target; with ``_train`` in the name it is the target's training works, the only ones that the network has seen.
    """

    source: str
    target: str
    method: str
    """``flow``, or the name of a baseline."""
    quality: float
    """See :func:`quality`."""
    swd: float
    swd_identity: float
    swd_floor: float
    swd_train: float
    swd_train_identity: float
    swd_train_floor: float
    ssm: float
    """Distance between the self-similarities of output and source; 0 if the content is the same."""
    ssm_chance: float
    """The same distance between the source and unrelated crops of the target style."""
    ssim: float
    """Structural similarity of output and source in brightness (Wang et al. 2004); 1 if they are the same."""
    style_accuracy: float
    """Share of the outputs that a classifier assigns to the target style."""


def quality(*, swd: float, swd_identity: float, swd_floor: float, ssm: float, ssm_chance: float) -> float:
    """Return the quality of a translation: 0 for unchanged and for unrelated pictures, at most 1.

    It is the harmonic mean of style reached (how much of the distance between source and real works of the target is
    covered) and content kept (1 minus the change of self-similarity relative to that between unrelated pictures). A harmonic
    mean is large only if both are (van Rijsbergen 1979). If the smaller of the two is not positive, it is the quality.
    """
    style = 1 - (swd - swd_floor) / max(swd_identity - swd_floor, 1e-6)
    content = 1 - ssm / max(ssm_chance, 1e-6)
    if min(style, content) <= 0:
        return min(style, content)
    return 2 / (1 / style + 1 / content)


class Judgement:
    """Translates held-out crops between all styles and scores the results.

    It scores the :func:`~projects.style_transfer.baselines.baselines` in the same way. Every call uses the same crops,
    projections and classifier, and random numbers of its own.

    Args:
        translator: the translator to score.
        energy: weighs style and content in ``val/loss``.
        train: training pictures of each style, (3, H, W) uint8.
        held_out: held-out pictures of each style.
        side: side of the crops in pixels.
        crops: number of crops of each style.
        classifier_steps: training steps of the classifier, which is trained when it is first needed.

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
        self._known: dict[tuple[int, int], dict[str, float]] = {}
        with own_rng(_SEED):
            self._sources = [random_crops(style, side, crops) for style in held_out]
            self._wanted = [random_crops(style, side, 2 * crops) for style in held_out]
            self._learnt = [random_crops(style, side, 2 * crops) for style in train]
            self._learnt_too = [random_crops(style, side, 2 * crops) for style in train]

    @cached_property
    def classifier(self) -> nn.Module:
        """The classifier of styles, trained on crops of training works."""
        return trained_classifier(self._train, self._side, self._classifier_steps)

    @cached_property
    def baselines(self) -> Mapping[str, Baseline]:
        """The baselines, fitted to the training works."""
        with own_rng(_SEED):
            return baselines([random_crops(style, self._side, _BASELINE_CROPS) for style in self._train])

    @cached_property
    def _baseline_pairs(self) -> list[PairScores]:
        return [
            self._scores(source, target, name, method(self._sources[source], source, target))
            for name, method in self.baselines.items()
            for source, target in permutations(range(len(self._sources)), 2)
        ]

    def __call__(self) -> dict[str, float]:
        """Return means over all pairs (``val/swd`` …), ``val/round_trip`` and ``val/loss``."""
        return self.summary(self.pairs())

    def pairs(self) -> list[PairScores]:
        """Return the scores of all pairs: the flow's, then the baselines'."""
        styles = range(len(self._sources))
        scores = []
        for source in styles:
            targets = [style for style in styles if style != source]
            made = self._translator.translate(self._sources[source], source, targets)
            scores += [self._scores(source, target, FLOW, image) for target, image in zip(targets, made, strict=True)]
        return scores + self._baseline_pairs

    def methods(self, pairs: Sequence[PairScores]) -> dict[str, dict[str, float]]:
        """Return each method's mean scores over all pairs; ``quality`` is that of the means."""
        names = [field.name for field in fields(PairScores) if field.type in (float, "float")]
        found = {}
        for method in (FLOW, *self.baselines):
            own = [pair for pair in pairs if pair.method == method]
            means = {name: float(np.mean([getattr(pair, name) for pair in own])) for name in names}
            found[method] = means | {"quality": self._quality(means)}
        return found

    def summary(self, pairs: Sequence[PairScores]) -> dict[str, float]:
        """Return the metrics of :meth:`__call__` from scored pairs; log a table of the methods."""
        methods = self.methods(pairs)
        for line in comparison(methods):
            log.info("%s", line)
        means = methods[FLOW]
        styles = range(len(self._sources))
        real = [share_named(self.classifier, self._sources[style], style) for style in styles]
        back = [self._translator.round_trip(self._sources[style], style, (style + 1) % len(styles)) for style in styles]
        return {
            "val/loss": self._energy.style * means["swd_train"] + self._energy.content * means["ssm"],
            **{f"val/{name}": value for name, value in means.items()},
            **{
                f"val/{name}_{method.replace(' ', '_')}": methods[method][name]
                for method in self.baselines
                for name in ("quality", "swd", "swd_train", "ssm", "ssim")
            },
            "val/style_accuracy_real": float(np.mean(real)),
            "val/round_trip": float(np.mean(back)),
        }

    def _scores(self, source: int, target: int, method: str, made: Tensor) -> PairScores:
        given = self._sources[source]
        distances = self._references(source, target) | {
            "swd": self._distance(made, self._wanted[target]),
            "swd_train": self._distance(made, self._learnt[target]),
            "ssm": self._structure(made, given),
        }
        return PairScores(
            source=self._translator.styles[source],
            target=self._translator.styles[target],
            method=method,
            quality=self._quality(distances),
            ssim=_ssim(made, given),
            style_accuracy=share_named(self.classifier, made, target),
            **distances,
        )

    def _references(self, source: int, target: int) -> dict[str, float]:
        """Return a pair's scores that no method changes; each is computed once."""
        if (source, target) not in self._known:
            given, wanted, learnt = self._sources[source], self._wanted[target], self._learnt[target]
            self._known[source, target] = {
                "swd_identity": self._distance(given, wanted),
                "swd_floor": self._distance(learnt, wanted),
                "swd_train_identity": self._distance(given, learnt),
                "swd_train_floor": self._distance(self._learnt_too[target], learnt),
                "ssm_chance": self._structure(wanted[: len(given)], given),
            }
        return self._known[source, target]

    @staticmethod
    def _quality(scores: Mapping[str, float]) -> float:
        return quality(
            swd=scores["swd_train"],
            swd_identity=scores["swd_train_identity"],
            swd_floor=scores["swd_train_floor"],
            ssm=scores["ssm"],
            ssm_chance=scores["ssm_chance"],
        )

    @torch.no_grad()
    def _distance(self, one: Tensor, other: Tensor) -> float:
        """Return the distance of clipped images (B, 3, H, W) in the codec's latents: they represent texture."""
        with own_rng(_SEED):
            encoded = self._translator.encode(one), self._translator.encode(other)
            return float(patch_distance(*encoded, projections=_PROJECTIONS))

    @torch.no_grad()
    def _structure(self, one: Tensor, other: Tensor) -> float:
        return float(structure_distance(self._translator.encode(one), self._translator.encode(other)))


def _ssim(made: Tensor, given: Tensor) -> float:
    """Return the mean structural similarity of images (B, 3, H, W) in brightness."""
    pairs = zip(*(np.tensordot(images.numpy(), BRIGHTNESS, (1, 0)) for images in (made, given)), strict=True)
    return float(np.mean([structural_similarity(one, other, data_range=1.0) for one, other in pairs]))


def comparison(methods: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return lines with a table of methods and a verdict."""
    columns = ("quality", "swd", "swd_train", "ssm", "ssim", "style_accuracy")
    width = max(map(len, methods))
    lines = ["  ".join([" " * width, *columns])]
    for name, scores in methods.items():
        lines.append("  ".join([name.ljust(width), *(f"{scores[column]:{len(column)}.3f}" for column in columns)]))
    flow = methods[FLOW]["quality"]
    better = [name for name, scores in methods.items() if name != FLOW and scores["quality"] >= flow]
    verdict = f"does not beat: {', '.join(better)}" if better else "beats every baseline"
    return [*lines, f"By quality the flow {verdict}."]
