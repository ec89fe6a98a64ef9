"""Which parameters decay, at which learning rate, and how it moves. The optimizers are torch's and timm's."""

from __future__ import annotations

import difflib
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import timm.optim
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_ssl.checks import check_choice, check_integer, check_positive

SCHEDULES = ("cosine", "constant")

__all__ = ["NO_DECAY", "SCHEDULES", "build_optimizer", "parameter_groups", "scaled_lr", "warmup_cosine"]

NO_DECAY = (
    "bias",
    "pos_embed",
    "pos_embedding",
    "position_embedding",
    "position_embeddings",
    "positional_embedding",
    "relative_position_bias_table",
    "cls_token",
    "class_token",
    "dist_token",
    "mask_token",
    "reg_token",
    "reg_tokens",
    "register_token",
    "register_tokens",
    "logit_scale",
    "logit_bias",
)
"""Endings of names whose parameters never decay, besides everything of one dimension or none (biases, norms)."""

_FUSED = ("adam", "adamw")
"""Optimizers of torch whose parameters, unless sharded, are updated by one kernel and not by ten."""

_KERNELS = ("fused", "foreach", "capturable", "differentiable")
"""Options of torch's optimizers that choose how they compute."""

_REFUSED = {"adahessian": "it needs the graph of the gradients, which no method keeps"}
"""Those of timm that cannot train, and why."""

_SETTINGS = ("weight_decay", "betas", "momentum", "dampening", "nesterov", "eps", "trust_coeff")
"""Options of optimizers that stay as they were given."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def _exempt_by_module(module: nn.Module) -> set[int]:
    """Parameters (by identity) that a module's own nature exempts: norms, and its ``no_weight_decay()`` names."""
    exempt: set[int] = set()
    for child in module.modules():
        if isinstance(child, _NORMS):
            exempt.update(map(id, child.parameters(recurse=False)))
        own = getattr(child, "no_weight_decay", None)  # timm's convention: a method that returns names or patterns
        if callable(own):
            patterns = list(own())
            for name, parameter in child.named_parameters():
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                    exempt.add(id(parameter))
    return exempt


def parameter_groups(
    parameters: nn.Module | NamedParameters, weight_decay: float, no_decay: Sequence[str] = NO_DECAY
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Exempt from decay are parameters of at most one dimension (biases, the affine part of norms), those of norm layers,
    those with a part of their dotted name that ends in one of ``no_decay`` (position embeddings, CLS, mask and register
    tokens, logit scale and bias; ``decoder_pos_embed`` ends in ``pos_embed``), and those that a submodule's
    ``no_weight_decay()`` names (timm).

    Args:
        parameters: a module, or (name, parameter) pairs. From pairs, only the shape and the name can be judged.
        weight_decay: coefficient of the decaying group, 0 or more.
        no_decay: endings of name parts that are exempt.

    Returns:
        At most two groups, ``{"params": [...], "weight_decay": w}``, decaying first, in the order of the model. Frozen
        parameters are left out; every trainable one is in exactly one group, also where it is shared. An empty group
        is left out.

    Raises:
        ValueError: ``weight_decay`` is negative or not finite, or no parameter is trainable.
    """
    check_positive("weight_decay", weight_decay, zero=True)
    exempt: set[int] = set()
    if isinstance(parameters, nn.Module):
        exempt = _exempt_by_module(parameters)
        parameters = parameters.named_parameters()
    endings = tuple(no_decay)
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    seen: set[int] = set()
    for name, parameter in parameters:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        by_name = any(part.endswith(endings) for part in name.split("."))
        keep = parameter.ndim <= 1 or by_name or id(parameter) in exempt
        (constant if keep else decaying).append(parameter)
    if not seen:
        raise ValueError("no parameter is trainable: every requires_grad is False, or the module has no parameters")
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": constant, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    parameters: nn.Module | NamedParameters,
    *,
    name: str = "adamw",
    lr: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer by name over :func:`parameter_groups`.

    ``"adamw"`` and ``"adam"`` are torch's. ``"sgd"`` is torch's with momentum 0.9 and no Nesterov step (as MoCo has it;
    He et al. 2019, arXiv:1911.05722, section 3.3; timm's own default is Nesterov). ``"lars"`` is timm's with momentum
    0.9 and trust coefficient 0.001 (You et al. 2017, arXiv:1708.03888); parameters that do not decay are not adapted
    either, as in SimCLR (Chen et al. 2020, arXiv:2002.05709), and those that could decay are adapted at weight decay 0
    too. Every other name is looked up in ``timm.optim`` (``timm.optim.list_optimizers()``).

    On a CPU and on CUDA, Adam and AdamW take torch's fused kernel where parameters are not sharded: in float32 the same
    numbers to the last bits, on a CPU in a fifth to half of the time. ``options={"fused": False}`` forbids it.
    Gradients can be clipped all the same: under ``16-mixed`` they are unscaled before the kernel sees them, not by it.
    A state may be loaded that was saved with another kernel, or with weights in another memory format.

    Args:
        parameters: a module, or (name, parameter) pairs.
        name: any case; ``lookahead_`` in front wraps timm's Lookahead around it.
        lr: learning rate, positive.
        weight_decay: coefficient, 0 or more, as the optimizer understands it (decoupled in AdamW, L2 in SGD and LARS).
        options: further arguments of the optimizer, such as ``{"betas": [0.9, 0.95]}``.

    Raises:
        ValueError: an unknown name (the message lists close ones), a learning rate or weight decay out of range, or
            options that the optimizer does not take.
    """
    check_positive("lr", lr)
    check_positive("weight_decay", weight_decay, zero=True)
    name, kind = _known(name)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(options or {}).items()}
    for reserved in ("lr", "weight_decay", "params"):
        if reserved in options:
            raise ValueError(f"optimizer_options must not hold {reserved!r}: it has its own argument")
    if kind == "sgd":
        options.setdefault("nesterov", False)
    groups = parameter_groups(parameters, 1.0)  # 1 marks the group that decays, whatever the coefficient is
    for group in groups:
        if kind in ("lars", "larc", "nlars", "nlarc"):
            # timm adapts the groups that decay; at weight decay 0 that would be none: plain SGD, without a word
            group.setdefault("always_adapt", options.get("always_adapt", group["weight_decay"] > 0))
        group["weight_decay"] *= weight_decay
    every = [p for group in groups for p in group["params"]]
    _say_short(every)
    plain = all(type(p.data) is torch.Tensor and p.device.type in ("cpu", "cuda") for p in every)
    chosen = options.keys() & _KERNELS
    kernel: dict[str, Any] = {"fused": True} if kind in _FUSED and plain and not chosen else {}
    try:
        optimizer = timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, **kernel, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r} does not work with optimizer_options {options!r}: {error}") from error
    except (ImportError, AssertionError) as error:
        raise ValueError(f"optimizer {name!r} cannot be used here: {error}") from error
    # Else Lightning would leave it to a fused kernel to unscale gradients, and refuse to clip them, in bf16-mixed, too.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    base = getattr(optimizer, "_base_optimizer", optimizer)  # in timm's Lookahead
    base.register_load_state_dict_pre_hook(_with_own_kernel)
    base.register_load_state_dict_post_hook(_as_parameters_lie)
    return optimizer


def _say_short(parameters: Sequence[nn.Parameter]) -> None:
    """Parameters below float32 gather updates in their own precision: what is small beside them is lost.

    Of 40 steps of CLIP at its own rate under ``bf16-true``, the logit scale and the weights of norms kept nothing.
    """
    dtypes = {parameter.dtype for parameter in parameters if parameter.element_size() < 4}
    for dtype in sorted(dtypes, key=str):
        name, lost = str(dtype).removeprefix("torch."), round(2 / torch.finfo(dtype).eps)
        rank_zero_info(
            f"weights are {name}: an update below 1/{lost} of a weight is lost in rounding; "
            "at small learning rates norms and a logit scale may stand still. bf16-mixed keeps weights in float32"
        )


def _with_own_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Which kernel updates, and with which settings, is said by the run that loads a state."""
    groups = [
        {**saved, **{key: own[key] for key in (*_KERNELS, *_SETTINGS) if key in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    return {**state, "param_groups": groups if len(groups) == len(state["param_groups"]) else state["param_groups"]}


def _as_parameters_lie(optimizer: torch.optim.Optimizer) -> None:
    """Moments are put in memory as their parameters are, which fused kernels take for granted, on a CPU unchecked."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if type(p.data) is Tensor]
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            alike = type(value) is Tensor and value.shape == parameter.shape
            if alike and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def scaled_lr(lr: float, batch: int, rule: Literal["linear", "sqrt", "none"] = "linear", base: int = 256) -> float:
    """The learning rate for an effective global batch (rows x devices x accumulated steps).

    Args:
        lr: learning rate at a batch of ``base``, positive.
        batch: effective global batch, 1 or more.
        rule: ``"linear"``, lr x batch / base (Goyal et al. 2017, arXiv:1706.02677); ``"sqrt"``,
            lr x sqrt(batch / base) (SimCLR's appendix B.1 in spirit, arXiv:2002.05709); ``"none"``, lr itself.
        base: the batch that ``lr`` is stated for; 256 in Goyal, MoCo v3 and MAE.

    Raises:
        ValueError: an argument out of range or an unknown rule.
    """
    check_positive("lr", lr)
    for argument, value in (("batch", batch), ("base", base)):
        check_integer(argument, value)
    factors = {"linear": batch / base, "sqrt": math.sqrt(batch / base), "none": 1.0}
    check_choice("lr_scaling", rule, list(factors))
    return lr * factors[rule]


def warmup_cosine(
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    total_steps: float | None,
    final: float = 0.0,
    schedule: Literal["cosine", "constant"] = "cosine",
    ahead: float = 0.0,
) -> LambdaLR:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983), per optimizer step.

    With W warm-up and T total steps, step s = 0, 1, ... runs at the peak learning rate times (s + 1) / W during
    warm-up, so the first step is not wasted on a rate of zero; then times
    final + (1 - final) (1 + cos(pi (s - W) / (T - W))) / 2, whose last step, s = T - 1, is just above ``final``; from
    T on it is ``final``. A pure function of the step: the step alone is what resuming restores, so a run that is
    resumed with another T follows the new curve.

    Args:
        optimizer: its groups' present learning rates are the peaks.
        warmup_steps: optimizer steps of warm-up, 0 or more; a warm-up longer than the run warns, for the peak is never
            reached.
        total_steps: optimizer steps of the whole run; None, -1 or infinity for a run without an end, which stays at
            the peak after warm-up.
        final: where the cosine ends, as a fraction of the peak, from 0 to 1.
        schedule: ``"cosine"``, or ``"constant"`` to stay at the peak after warm-up.
        ahead: steps that the run is further than it has counted (negative: less far), where it was resumed with another
            batch: s is then the share of samples that have been seen, in steps of this run.

    Raises:
        ValueError: an argument out of range or an unknown schedule.
    """
    check_integer("warmup_steps", warmup_steps, 0)
    if total_steps is None or total_steps == -1:
        total_steps = math.inf
    if not total_steps >= 1:
        raise ValueError(f"total_steps must be at least 1, or None or -1 for no end, got {total_steps!r}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must be a fraction of the peak from 0 to 1, got {final!r}")
    check_choice("schedule", schedule, SCHEDULES)
    if warmup_steps > total_steps:
        warnings.warn(
            f"the warm-up ({warmup_steps} steps) is longer than the run ({total_steps:g} steps): the learning rate "
            "never reaches its peak; shorten warmup_epochs or train longer",
            stacklevel=2,
        )
    falling = schedule == "cosine" and math.isfinite(total_steps)

    def factor(counted: int) -> float:
        step = max(counted + ahead, 0)
        if falling and step >= total_steps:
            return final
        if step < warmup_steps:
            return min((step + 1) / warmup_steps, 1.0)
        if not falling:
            return 1.0
        done = (step - warmup_steps) / (total_steps - warmup_steps)
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return _Schedule(optimizer, factor)


class _Schedule(LambdaLR):
    """A LambdaLR that takes in parameters which are added in mid-run, as ``BackboneFinetuning`` does."""

    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.lr_lambdas.append(self.lr_lambdas[0])
            self.base_lrs.append(group["lr"] / (self.lr_lambdas[0](self.last_epoch) or 1.0))
        return super().get_lr()


def _known(name: str) -> tuple[str, str]:
    """The name in lower case and the optimizer inside it (behind ``lookahead_``)."""
    lowered = str(name).lower()
    kind = lowered.removeprefix("lookahead_")
    if kind in _REFUSED:
        raise ValueError(f"optimizer {name!r} cannot be used here: {_REFUSED[kind]}")
    names = [str(known) for known in timm.optim.list_optimizers() if str(known) not in _REFUSED]
    if kind not in names:
        close = difflib.get_close_matches(kind, names, n=5, cutoff=0.5) or ["adamw", "sgd", "lars", "lamb", "lion"]
        raise ValueError(f"optimizer {name!r} is unknown; did you mean {', '.join(close)}? All: {', '.join(names)}")
    return lowered, kind
