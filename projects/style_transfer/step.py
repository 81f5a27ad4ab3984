"""The training step: an energy that moves style and keeps content, and flow matching for flows through noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import mltrain
from mltrain.state import Stateful
from projects.style_transfer.codec import Standardized
from projects.style_transfer.flow import Flow, drawn_times, matching_loss
from projects.style_transfer.losses import patch_distance, structure_distance
from projects.style_transfer.translator import KnownStyles
from projects.style_transfer.velocity import VelocityNet

OVER_BUDGET = 10.0
"""Weight of the change of content beyond the budget."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The loss of a translation: ``style`` and ``content`` weigh the two distances.

    ``anchor_steps`` is the number of steps of flow matching alone before the energy, for flows through noise: a velocity that is
    not yet that of a flow has no useful inverse.

    ``budget`` is the change of content beyond which every further change weighs :data:`OVER_BUDGET` more, an exact penalty
    (Nocedal and Wright, 2006, chapter 17).
    """

    style: float
    content: float
    anchor_steps: int = 0
    budget: float = math.inf

    def __call__(self, swd: Tensor, ssm: Tensor) -> Tensor:
        """Return the energy for distances of style (``swd``) and content (``ssm``)."""
        return self.style * swd + self.content * ssm + OVER_BUDGET * (ssm - self.budget).clamp(min=0)


class TransferStep(mltrain.Supervised):
    """Trains the velocity on batches of crops (B, styles, 3, H, W).

    Args:
        model: the network that gives the velocity.
        codec: a fitted, frozen codec.
        known: the styles. If they have maps, the energy alone trains the flow between them.
        flow: a flow over ``model`` with the number of steps of training; their times are drawn anew in each step.
        energy: the loss of translations.
        optimizer: optimizer of the network's parameters.
        scheduler: learning rate schedule, advanced once per step.
        clip: largest norm of the gradient of the energy, and of that of all terms together.

    """

    clip: float

    def __init__(
        self,
        model: VelocityNet,
        codec: Standardized,
        known: KnownStyles,
        flow: Flow,
        energy: Energy,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        clip: float = 1.0,
    ) -> None:
        super().__init__(model, energy, optimizer, scheduler=scheduler, clip=clip)
        self.codec = codec
        self.known = known
        self.flow = flow
        self.energy = energy

    def prepare(self, device: torch.device, amp: str) -> None:
        """Move network and codec to the device; raise UsageError for fp16 without CUDA."""
        super().prepare(device, amp)
        self.codec.to(device)

    def parts(self) -> dict[str, Stateful]:
        """Return network, codec, optimizer, schedule, and any enabled gradient scaler."""
        return {**super().parts(), "codec": self.codec}

    def __call__(self, batch: Tensor) -> Mapping[str, Any]:
        """Do one optimizer step; return ``loss`` and its terms ``swd``, ``ssm`` and, through noise, ``flow``."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            encoded = self.codec.encode(batch.to(self.device).flatten(0, 1))
        latents = encoded.view(*batch.shape[:2], *encoded.shape[1:])
        styles = torch.arange(batch.shape[1], device=self.device).expand(batch.shape[:2])
        loss, terms = (self._through_noise if self.known.maps is None else self._between_styles)(latents, styles)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if norm.isfinite() or self.scaler.is_enabled():  # the scaler itself skips such steps
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
        return {"loss": loss.detach(), **terms, "grad_norm": norm.detach()}

    def _between_styles(self, latents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradient of the energy; return it and its terms."""
        energy, distances = self._translated(latents, styles)
        self.scaler.scale(energy).backward()  # type: ignore[no-untyped-call]
        return energy, distances

    def _through_noise(self, latents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute gradients of flow matching and, after ``anchor_steps``, the energy; return their sum and all terms."""
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            loss = matching_loss(self.model, latents.flatten(0, 1), styles.flatten())
        terms = {"flow": loss.detach()}
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        # The schedule counts the steps and is in every checkpoint, so a resume knows whether these steps are done.
        if self.scheduler.last_epoch >= self.energy.anchor_steps and (self.energy.style or self.energy.content):
            energy, distances = self._translated(latents, styles)
            terms |= distances | {"energy_norm": self._add_gradient(energy)}
            loss = loss + energy
        return loss, terms

    def _translated(self, latents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Translate crops between two random styles; return energy and distances."""
        source, target = torch.randperm(latents.shape[1])[:2].tolist()
        given, wanted = latents[:, source], latents[:, target]
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            route = self.known.route(replace(self.flow, times=drawn_times(len(self.flow.times) - 1)))
            made = route.translate(given, styles[:, source], styles[:, target]).float()
        swd, ssm = patch_distance(made, wanted), structure_distance(made, given)
        return self.energy(swd, ssm), {"swd": swd.detach(), "ssm": ssm.detach()}

    def _add_gradient(self, energy: Tensor) -> Tensor:
        """Add the energy's gradient, clipped, to that of flow matching; return its norm before clipping.

        Through many steps of integration it is sometimes very large. If both were clipped together, nothing of flow
        matching would be left, and the velocity would no longer be that of a flow.
        """
        weights = list(self.model.parameters())
        gradients = torch.autograd.grad(self.scaler.scale(energy), weights)
        norm = nn.utils.get_total_norm(gradients) / self.scaler.get_scale()
        share = (self.clip / norm).clamp(max=1.0)
        for weight, gradient in zip(weights, gradients, strict=True):
            assert weight.grad is not None
            weight.grad.add_(gradient * share)
        return norm.detach()
