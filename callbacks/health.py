"""A guard: it stops a run that computes nonsense, or leaves out the steps that would."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_ssl.checks import check_choice, check_flag, check_integer
from lit_ssl.distributed import all_reduce_sum, gather, rank, world_size

from .health_replay import rebuilt, save_replay
from .pictures import run_folder
from .single import SingleCallback
from .spectrum import RepresentationMonitor

__all__ = ["CollapseError", "HealthGuard", "NonFiniteError"]


class NonFiniteError(RuntimeError):
    """A loss or a gradient is nan or infinite."""


class CollapseError(RuntimeError):
    """The representation has collapsed."""


class HealthGuard(SingleCallback):
    """Stops a run at its first loss or gradient that is nan or infinite, before the optimizer acts on it.

    The message names the step, the terms of the loss, the first parameter whose gradient is not finite, and the
    samples; the batch is saved beside the run's metrics as ``nonfinite-step<N>.pt``, with keys, seed and the weights it
    met, for :func:`~lit_ssl.callbacks.load_replay`. The weights are still those of the step before: no checkpoint
    holds a nan. Under several processes all stop (or skip) at the same step, and each saves its rows.

    With ``on_nonfinite="skip"`` such a step is left out instead: weights, the optimizer's state, queues, momentum
    encoders and running statistics stay as they were before it, while the step count and the learning rate move on.
    Under gradient accumulation a step is all the batches that it accumulates.

    With ``16-mixed``, a gradient that overflows is normal: the scaler skips that step and halves its scale. Only what
    the scaler cannot mend counts here: a loss that is not finite itself, or a gradient at a scale of 1 or less.

    What it costs: each optimizer step, one multi-tensor reduction reads the gradients, and the host waits for a byte a
    parameter tensor (under several processes after one all-reduce of as much). On an H100 that was 1 to 2 ms of a step:
    3 % of a ViT-S/16 with 128 images of 224 pixels, 7 % of a ResNet-18 with 256 of 32. Buffers are copied aside before
    each step. A run without a nan has the same weights to the bit as without the guard.

    Collapse is what :class:`~lit_ssl.callbacks.RepresentationMonitor` measures at validation; below its ``min_std`` or
    ``min_rank`` the guard tells all of its numbers, those of the validation before beside them, and warns or stops.

    Args:
        on_nonfinite: ``stop`` or ``skip``.
        max_skips: how many steps of a run, resumed ones included, may be skipped; the next one stops it. Default 10.
        on_collapse: ``warn`` or ``stop``.
        save_batch: whether to save the batch: where the run stops, and at the first step that is skipped.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: ``on_collapse="stop"`` in a run without RepresentationMonitor.
    """

    def __init__(
        self,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skips: int = 10,
        on_collapse: Literal["warn", "stop"] = "warn",
        save_batch: bool = True,
    ) -> None:
        check_choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
        check_integer("max_skips", max_skips, 0)
        check_choice("on_collapse", on_collapse, ("warn", "stop"))
        check_flag("save_batch", save_batch)
        self.on_nonfinite, self.max_skips = on_nonfinite, max_skips
        self.on_collapse, self.save_batch = on_collapse, save_batch
        self.skipped: list[int] = []  # steps
        self._geometry: dict[str, float] = {}  # of the last validation
        self._collapsed = False
        self._batches: list[Any] = []  # of this step
        self._flags: list[Tensor] = []  # of this step's batches: is the loss, is any gradient not finite
        self._buffers: dict[str, Tensor] = {}  # before this step
        self._undo: dict[str, Tensor] | None = None  # what to put back after this step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.on_collapse == "stop" and _monitor(trainer) is None:
            raise MisconfigurationException("on_collapse='stop' needs the callback RepresentationMonitor in the run")

    # Each step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches, self._flags, self._buffers, self._undo = [], [], {}, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._batches:
            _copy(dict(pl_module.named_buffers()), self._buffers)
        else:  # of those before, only what the views are made from, which is small
            self._batches[-1] = _without_views(self._batches[-1])
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._flags.append(loss.detach().isfinite().logical_not().reshape(1))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.accumulate_grad_batches > 1:  # else on_before_optimizer_step sees the same gradients
            self._flags.append(_gradient_flags(pl_module).any().reshape(1))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        flags = torch.cat([*self._flags, _gradient_flags(pl_module)])
        if world_size() > 1:
            flags = all_reduce_sum(flags.to(torch.float32)) > 0
        found = flags.cpu()  # the one place that waits for the device
        batches, parts = self._batches, len(self._flags)
        self._batches, self._flags = [], []
        if bool(found.any()) and not _left_to_scaler(trainer, found[:parts], len(batches)):
            self._tell(trainer, pl_module, optimizer, batches, found[:parts].tolist(), found[parts:].tolist())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._undo is not None:
            _restore(pl_module, self._undo)
            self._undo = None
            pl_module.log("health/skipped", float(len(self.skipped)))

    # What was found

    def _tell(
        self, trainer: Trainer, module: Any, optimizer: Any, batches: list[Any], flags: list[bool], grads: list[bool]
    ) -> None:
        skip = self.on_nonfinite == "skip" and len(self.skipped) < self.max_skips
        _restore(module, self._buffers)
        each = len(flags) // len(batches)  # flags of a batch
        place = next((i // each for i, bad in enumerate(flags) if bad), len(batches) - 1)
        batch = rebuilt(trainer, module, batches[place])
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        terms = [name for name, value in metrics.items() if name.startswith("train/") and not math.isfinite(value)]
        names = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
        first = next((name for name, bad in zip(names, grads, strict=True) if bad), None)
        what = []
        if any(flags[::each]):
            what += [f"{name} is {metrics[name]}" for name in terms] or ["the loss is not finite"]
        if first is not None:
            what.append(f"the gradient of {first} is not finite, the first of {sum(grads)} out of {len(grads)}")
        found = {"terms": terms, "gradients": [name for name, bad in zip(names, grads, strict=True) if bad]}
        where = self._saved(trainer, module, batch, found, skip)
        message = (
            f"step {trainer.global_step} (epoch {trainer.current_epoch}): {', '.join(what)}. {_samples(batch)}{where}"
        )
        if not skip:
            limit = f" {len(self.skipped)} steps were skipped before, as max_skips allows." if self.skipped else ""
            raise NonFiniteError(
                f"{message}{limit} Weights are those before the step. Usual remedies: a lower lr, "
                "--trainer.gradient_clip_val 1, bf16-mixed in place of 16-mixed; --health.on_nonfinite skip leaves "
                "such steps out"
            )
        self.skipped.append(trainer.global_step)
        rank_zero_warn(f"skipped {message} ({len(self.skipped)} of at most {self.max_skips})")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # an optimizer passes over a parameter without gradient, its state included
        frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
        self._undo = {**frozen, **self._buffers}  # momentum encoders follow right behind the optimizer

    def _saved(self, trainer: Trainer, module: Any, batch: Any, found: dict[str, Any], skip: bool) -> str:
        folder = run_folder(trainer)  # a collective call
        if not self.save_batch or (skip and self.skipped) or getattr(trainer, "fast_dev_run", False):
            return ""
        part = f"-rank{rank()}" if world_size() > 1 else ""
        path = folder / f"nonfinite-step{trainer.global_step}{part}.pt"
        try:
            save_replay(path, trainer, module, batch, found)
        except (OSError, RuntimeError) as error:
            return f" The batch could not be saved ({' '.join(str(error).split())})."
        return f" The batch is in {path}, for lit_ssl.callbacks.load_replay."

    # Collapse

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = _monitor(trainer)
        if monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        names = ("std", "rankme", "uniformity", "alignment")
        metrics = {name: trainer.callback_metrics.get(f"spectrum/{name}") for name in names}
        now = {name: float(value) for name, value in metrics.items() if value is not None}
        if not now or now == self._geometry:  # not measured this time
            return
        before, self._geometry = self._geometry, now
        limits = {"std": monitor.min_std, "rankme": monitor.min_rank}
        below = [f"{name} {now[name]:.4g} is below {limit:g}" for name, limit in limits.items() if now[name] < limit]
        told, self._collapsed = self._collapsed, bool(below)
        if not below:
            return
        trend = ", ".join(
            f"{name} {f'{before[name]:.4g} -> ' if name in before else ''}{value:.4g}" for name, value in now.items()
        )
        message = (
            f"the representation of held-out images has collapsed by step {trainer.global_step} (epoch "
            f"{trainer.current_epoch}): {' and '.join(below)}; evidence: {trend}, of {pl_module.num_features} features"
        )
        if self.on_collapse == "stop":
            raise CollapseError(f"{message}. Usual causes: too high a lr, too strong views, too small a batch")
        if not told:
            rank_zero_warn(message)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped), "geometry": dict(self._geometry), "collapsed": self._collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = list(state_dict["skipped"])
        self._geometry, self._collapsed = dict(state_dict["geometry"]), state_dict["collapsed"]


def _gradient_flags(module: LightningModule) -> Tensor:
    """Which gradients hold a value that is not finite: bool (parameters with a gradient,)."""
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    local: list[Any] = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]  # FSDP's shards
    if not local:
        return torch.zeros(0, dtype=torch.bool, device=module.device)
    # The largest absolute value keeps nan and inf, and unlike a sum of squares never overflows by itself.
    sizes = torch._foreach_norm([grad if grad.numel() else grad.new_zeros(1) for grad in local], math.inf)
    if len({size.dtype for size in sizes}) > 1:
        return torch.stack([size.isfinite() for size in sizes]).logical_not()
    return torch.stack(sizes).isfinite().logical_not()


def _left_to_scaler(trainer: Trainer, flags: Tensor, batches: int) -> bool:
    """Whether what was found is a gradient that overflowed at the scaler's scale."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    losses = flags[:: len(flags) // batches]
    return scaler is not None and not bool(losses.any()) and scaler.get_scale() > 1


def _samples(batch: Any) -> str:
    """The indices of a batch on all ranks, and which of them bring values that are not finite. A collective call."""
    index = batch["index"]
    bad = torch.zeros_like(index, dtype=torch.bool)
    for value in batch.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Tensor) and part.is_floating_point() and part.shape[:1] == index.shape:
                bad |= part.flatten(1).isfinite().logical_not().any(1).to(bad.device)
    rows = gather(torch.stack([index, bad.to(index.dtype)], 1)).tolist()
    told = [str(i) if i >= 0 else f"row {row}" for row, (i, _) in enumerate(rows)]
    wrong = [name for name, (_, is_bad) in zip(told, rows, strict=True) if is_bad]
    inputs = f"Inputs that are not finite: {_shortened(wrong)}. " if wrong else ""
    if all(i < 0 for i, _ in rows):
        return f"{inputs}Its {len(rows)} samples have no index."
    return f"{inputs}Samples (index): {_shortened(told)}."


def _shortened(names: list[str], most: int = 16) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def _without_views(batch: Any) -> Any:
    return {name: value for name, value in batch.items() if name != "views"} if "key" in batch else batch


@torch.no_grad()
def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Copies tensors by name, with one kernel for each dtype."""
    groups: dict[torch.dtype, list[str]] = {}
    for name, value in values.items():
        if name not in into:
            into[name] = torch.empty_like(value)
        groups.setdefault(value.dtype, []).append(name)
    for names in groups.values():
        torch._foreach_copy_([into[name] for name in names], [values[name] for name in names])


def _restore(module: LightningModule, values: dict[str, Tensor]) -> None:
    _copy(values, {**dict(module.named_parameters()), **dict(module.named_buffers())})


def _monitor(trainer: Trainer) -> RepresentationMonitor | None:
    callbacks = cast(Any, trainer).callbacks
    found = [callback for callback in callbacks if isinstance(callback, RepresentationMonitor)]
    return found[0] if found else None
