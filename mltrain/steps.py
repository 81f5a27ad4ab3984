"""A ready-made training step: forward, backward, clipping, accumulation, mixed precision, schedule."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mltrain.batches import cut, length
from mltrain.device import moved
from mltrain.errors import UsageError
from mltrain.gradient_norm import clip, gradients_of, norm_of
from mltrain.metrics import Metrics, floats
from mltrain.state import Stateful

_MOST_OVERFLOWS = 30
"""A gradient scaler begins at 2**16 and halves at each overflow, so after this many the gradient itself is not finite."""


class Step(Protocol):
    """One optimizer step: a callable of a batch that returns metrics.

    The trainer watches ``loss`` and ``grad_norm`` among them: if one is NaN or infinite, the step must not have changed what it
    trains, and the trainer applies ``on_nonfinite``.
    """

    def __call__(self, batch: Any) -> Metrics:
        """Train on one batch."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A step that lists its stateful parts."""

    def parts(self) -> Mapping[str, Stateful]:
        """Return the parts by name; other programs can load the part ``model``."""
        ...


@runtime_checkable
class HasDevice(Protocol):
    """A step to be prepared once for device and precision."""

    def prepare(self, device: torch.device, amp: str) -> None:
        """Move models and other state to the device."""
        ...


@runtime_checkable
class AllowsLateCopy(Protocol):
    """A step that may allow late copies of checkpoints.

    A late copy runs during the next forward and backward. A step may allow it if only ``optimizer.step()`` changes the parameters
    of its optimizers: neither the model's forward, nor the step itself before that, nor the body of the loop around the trainer.
    """

    late_copy: bool


@runtime_checkable
class HasEpochMetrics(Protocol):
    """A step that accumulates metrics over an epoch."""

    def epoch_metrics(self) -> Mapping[str, float]:
        """Return and reset the epoch's metrics; an error resets nothing."""
        ...


@runtime_checkable
class FollowsMetric(Protocol):
    """A step whose schedule follows ``best_metric``."""

    @property
    def follows(self) -> Literal["min", "max"] | None:
        """The schedule's mode; ``None`` if it does not follow the metric."""
        ...

    def evaluated(self, value: float) -> None:
        """Process the metric of an evaluation; called before the epoch is saved."""
        ...


class Supervised:
    """Trains ``model`` on batches ``(input, target)``.

    Args:
        model: maps an input to an output.
        loss: maps (output, target) to a scalar tensor.
        optimizer: over the model's parameters.
        scheduler: stepped once after each optimizer step, so plan a per-epoch schedule in steps. A
            ``ReduceLROnPlateau`` is stepped after each evaluation, with the value of ``best_metric``.
        clip: largest L2 norm of the gradient. If ``None``, the gradient is not clipped.
        accumulate: number of micro-batches per batch, to save memory. The gradient is that of the mean
            loss over the batch; accumulation ends within the step, so every boundary is an optimizer step.
        metrics: name to torchmetrics-like object (``update(output, target)``, ``compute()``, ``reset()``),
            accumulated over the epoch on the training batches.
        late_copy: see :class:`AllowsLateCopy`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Any = None,
        clip: float | None = None,
        accumulate: int = 1,
        metrics: Mapping[str, Any] | None = None,
        late_copy: bool = False,
    ) -> None:
        if accumulate < 1:
            raise UsageError(f"accumulate={accumulate} is invalid. Expected at least 1.")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip = clip
        self.accumulate = accumulate
        self.late_copy = late_copy
        self.metrics = dict(metrics or {})
        self.device = torch.device("cpu")
        self._autocast: torch.dtype | None = None
        self.scaler = torch.amp.GradScaler(enabled=False)
        self._overflows = 0
        for metric in self.metrics.values():
            metric.persistent(True)  # without it torchmetrics leaves unfinished epochs out of state_dict()

    def prepare(self, device: torch.device, amp: str) -> None:
        """Move model, loss and metrics to the device.

        A gradient scaler is used for fp16 on CUDA only.
        """
        self.device = device
        self._autocast = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        if amp == "fp16" and device.type != "cuda":
            raise UsageError(f"amp=fp16 is invalid on {device.type}. Expected a CUDA device. Try: amp=bf16 or amp=off")
        self.model.to(device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        for metric in self.metrics.values():
            metric.to(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def parts(self) -> dict[str, Stateful]:
        """Return model, optimizer and other stateful parts by name.

        The others are trainable loss, scheduler, scaler and metrics, if present.
        """
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        # A loss without parameters holds settings such as class weights, which the configuration may change on a resume.
        if isinstance(self.loss, nn.Module) and any(one.requires_grad for one in self.loss.parameters()):
            parts["loss_module"] = self.loss
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        if self.metrics:
            parts["metrics"] = _Metrics(self.metrics, self.device)
        return parts

    def __call__(self, batch: Any) -> Metrics:
        """Do one optimizer step; return ``loss`` and perhaps ``grad_norm``.

        With clipping, it returns the norm before clipping. If the loss or the gradient is not finite, it updates nothing and
        returns both. A gradient scaler that is still searching its scale causes infinite gradients deliberately; such steps are
        skipped, and do not count until there are 30 in a row.
        """
        self.model.train()
        inputs, targets = moved(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        outputs = []
        pieces = list(zip(cut(inputs, self.accumulate), cut(targets, self.accumulate), strict=True))
        size = sum(length(piece) for piece, _ in pieces)
        for piece, target in pieces:
            share = length(piece) / size if len(pieces) > 1 else 1.0
            with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                output = self.model(piece)
                loss = self.loss(output, target) * share
            # If the loss is not finite, neither is its gradient, so all processes that average it skip the step.
            self.scaler.scale(loss).backward(1 + 0 * loss.detach())  # type: ignore[no-untyped-call]
            total += loss.detach()
            if self.metrics:
                outputs.append((output.detach(), target))
        self.scaler.unscale_(self.optimizer)
        norm = self._clipped()
        fine = bool(torch.isfinite(total + norm.to(total.device)))  # waits for a GPU once
        fine = fine or (bool(torch.isfinite(total)) and self._fits(norm))
        overflow = not fine and bool(torch.isfinite(total)) and self._looks_for_scale
        self._overflows = 0 if fine else self._overflows + 1
        if not (fine or overflow):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.update()
            return {"loss": total, "grad_norm": norm}  # the weights are unchanged for the next batch or a resume
        result: dict[str, float | Tensor] = {"loss": total}
        if self.clip is not None and fine:
            result["grad_norm"] = norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for output, target in outputs:
            for metric in self.metrics.values():
                metric.update(output, target)
        if self.scheduler is not None and self.follows is None:
            self.scheduler.step()
        return result

    @property
    def follows(self) -> Literal["min", "max"] | None:
        """The mode of a ``ReduceLROnPlateau``; ``None`` for any other schedule."""
        return self.scheduler.mode if isinstance(self.scheduler, ReduceLROnPlateau) else None

    def evaluated(self, value: float) -> None:
        """Step a schedule that follows ``best_metric``."""
        self.scheduler.step(value)

    def _clipped(self) -> Tensor:
        """Clip the gradient if configured; return the norm before clipping.

        A norm that is not finite reveals a bad gradient of any parameter that the optimizer updates.
        """
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.clip is None:
            return norm_of(held)
        norm = clip(self.model.parameters(), self.clip)
        own = {id(parameter) for parameter in self.model.parameters()}
        rest = [parameter for parameter in held if id(parameter) not in own]
        # Unclipped gradients are not part of the norm, but have to be finite as well.
        return norm + 0 * norm_of(rest).to(norm.device) if rest else norm

    def _fits(self, norm: Tensor) -> bool:
        """Return whether only the norm overflows, not a gradient."""
        if self.clip is not None or torch.isnan(norm):
            return False
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients_of(held))

    @property
    def _looks_for_scale(self) -> bool:
        return self.scaler.is_enabled() and self._overflows < _MOST_OVERFLOWS

    def epoch_metrics(self) -> dict[str, float]:
        """Return and reset the metrics over the epoch's training batches.

        If one raises, none is reset. A metric without a batch, because no step of the epoch was finite, is left out.
        """
        seen = {name: metric for name, metric in self.metrics.items() if getattr(metric, "update_called", True)}
        values = floats({name: metric.compute() for name, metric in seen.items()}, "Supervised(metrics=)")
        for metric in self.metrics.values():
            metric.reset()
        return values

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])


class _Metrics:
    """The accumulators of several metrics as one stateful part."""

    def __init__(self, metrics: Mapping[str, Any], device: torch.device) -> None:
        self._metrics = metrics
        self._device = device

    @property
    def rank_local(self) -> bool:
        """Whether each process has metrics of its own batches."""
        return any(getattr(metric, "update_called", True) for metric in self._metrics.values())

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {"state": dict(metric.state_dict()), "updates": metric._update_count}
            for name, metric in self._metrics.items()
        }

    def forget(self, before: Mapping[str, Any]) -> None:
        """Undo the last update, but let :meth:`epoch_metrics` compute.

        ``compute()`` waits for all processes, and needs lists of the same number of dimensions on all.
        """
        for name, now in self.state_dict().items():
            kept = before[name]["state"]
            for key, value in now["state"].items():
                fresh = isinstance(value, list) and not kept[key]
                now["state"][key] = [one[:0] if one.ndim else one[None][:0] for one in value] if fresh else kept[key]
            self._load(name, now)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for name in self._metrics:
            self._load(name, state_dict[name])

    def _load(self, name: str, state: Mapping[str, Any]) -> None:
        metric = self._metrics[name]
        metric.reset()
        metric.load_state_dict(moved(state["state"], self._device))  # it keeps these very tensors
        metric._update_count = state["updates"]  # without it compute() warns of a metric never updated
