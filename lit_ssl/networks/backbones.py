"""Backbones by name, from timm or small ones of our own, and any module that a user brings."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from lit_ssl.spec import ImageSpec

from .patches import even_patch
from .small import MLP, ConvNet
from .vit_options import apply_vit_options, take_vit_options
from .weights import load_backbone

__all__ = ["build_backbone", "load_backbone"]

SMALL = 64  # pixels of the longer side up to which an image counts as small
_OWN: dict[str, Callable[..., nn.Module]] = {
    "convnet": lambda spec, **options: ConvNet(spec.channels, **options),
    "mlp": lambda spec, **options: MLP(spec, **options),
}


def build_backbone(
    backbone: str | nn.Module,
    spec: ImageSpec,
    *,
    pretrained: bool = False,
    gradient_checkpointing: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A module that maps normalised images (B, C, H, W) to pooled features (B, D) and has an integer ``num_features``.

    Every backbone is tried once on two blank images of ``spec`` (eval mode, no gradient), so a size or channel count
    that does not fit is an error here and not in the first step, and ``num_features`` is what really comes out.

    Names from timm get ``in_chans=spec.channels`` and ``num_classes=0``, and ``img_size=spec.size`` where the
    architecture is built for one size. For small images (longer side up to 64 pixels) without pretrained weights,

    - ResNets (timm's ResNet and ResNetV2 classes: ResNeXt, SE-, Wide- and so on with them) get the stem of SimCLR's
      CIFAR recipe: one 3x3 convolution of stride 1 and no max-pool (Chen et al. 2020, arXiv:2002.05709, appendix B.9);
      ``small_stem`` among the options forces or forbids it. With ``pretrained=True`` it starts from random weights,
      the rest from the pretrained ones.
    - ViTs named ``..._patchN_...`` get the patch size that divides the image and comes closest to an eighth of the
      shorter side (4 at 28 and 32 pixels, 8 at 64), if N is larger and one leaves 4 to 16 tokens along that side: 16
      would leave 4 tokens of a 32-pixel image. ``patch_size`` among the options decides instead.

    Two more options of ours, for ViTs, default false: ``fixed_positions`` and ``frozen_patch_embedding``; see
    :func:`~lit_ssl.networks.vit_options.apply_vit_options`.

    Args:
        backbone: a name from ``timm.list_models()`` (``.tag`` and ``hf-hub:`` forms included); ``"convnet"``
            (:class:`~lit_ssl.networks.small.ConvNet`); ``"mlp"`` (:class:`~lit_ssl.networks.small.MLP`); or a module of
            one's own, which is returned itself, so that its names in the state dict are its own.
        spec: the images' size and channels.
        pretrained: load timm's weights (downloaded once, then cached).
        gradient_checkpointing: recompute activations in the backward pass, by the module's own
            ``set_grad_checkpointing`` (most of timm).
        options: further arguments of the constructor, such as ``{"drop_path_rate": 0.1}`` or ``{"width": 64}``.

    Raises:
        TypeError: ``backbone`` is neither a name nor a module.
        ValueError: an unknown name (close ones are listed), options that the backbone does not take, an image that it
            cannot be built for, or an output that is not (B, D).
        RuntimeError: pretrained weights could not be loaded.
    """
    options = dict(options or {})
    if isinstance(backbone, nn.Module):
        if pretrained or options:
            given = "pretrained=True" if pretrained else f"backbone_options={options!r}"
            raise ValueError(f"{given} needs a backbone given by name; {type(backbone).__name__} is built already")
        module, name = backbone, type(backbone).__name__
    elif isinstance(backbone, str):
        name = backbone
        module = (
            _build_own(name, spec, pretrained, options)
            if name in _OWN
            else _build_timm(name, spec, pretrained, options)
        )
    else:
        raise TypeError(f"backbone must be a name or an nn.Module, got {type(backbone).__name__}: {backbone!r}")
    features = _features(module, name, spec)
    declared = getattr(module, "num_features", None)
    if isinstance(backbone, nn.Module) and isinstance(declared, int) and declared != features:
        raise ValueError(
            f"backbone {name} says num_features={declared} but gives (B, {features}); a classifier may still be on "
            "top: remove it (timm: num_classes=0, torchvision: model.fc = nn.Identity()), or correct num_features"
        )
    if declared != features:
        module.num_features = features  # type: ignore[assignment]
    if gradient_checkpointing:
        _checkpoint(module, name)
    return module


def _build_own(name: str, spec: ImageSpec, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        raise ValueError(f"backbone {name!r} has no pretrained weights; use init_from for your own, or a timm name")
    try:
        return _OWN[name](spec, **options)
    except TypeError as error:
        raise ValueError(f"backbone {name!r} does not take backbone_options {options!r}: {error}") from error


def _build_timm(name: str, spec: ImageSpec, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    for reserved, source in (
        ("in_chans", "spec"),
        ("img_size", "spec"),
        ("num_classes", "the task"),
        ("pretrained",) * 2,
        *((name, "init_from") for name in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")),
    ):
        if reserved in options:
            raise ValueError(f"backbone_options must not hold {reserved!r}: it comes from {source}")
    small = max(spec.height, spec.width) <= SMALL
    small_stem = options.pop("small_stem", None)
    if small_stem not in (None, True, False):
        raise ValueError(f"small_stem must be true, false or null, got {small_stem!r}")
    vit_options = take_vit_options(options)
    arguments: dict[str, Any] = {"in_chans": spec.channels, "num_classes": 0, **options}
    if ":" not in name:  # hf-hub: and local-dir: models describe themselves
        _require_known(name, pretrained)
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
        if config is not None and config.fixed_input_size:
            arguments["img_size"] = spec.size
    named_patch = re.search(r"_patch(\d+)", name)
    if small and not pretrained and named_patch and "window" not in name:
        patch = even_patch(spec)
        if patch is not None and patch < int(named_patch[1]):
            arguments.setdefault("patch_size", patch)
    try:
        module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        named = isinstance(error, (TypeError, AssertionError, ValueError)) and not isinstance(error, OSError)
        if named or (options and not pretrained and ":" not in name):
            raise ValueError(
                f"timm cannot build backbone {name!r} for images of {_shape(spec)} with backbone_options {options!r}: "
                f"{reason}"
            ) from error
        if pretrained or ":" in name:  # the Hub's errors have many classes, most of them OSErrors
            raise RuntimeError(
                f"the pretrained weights of {name!r} could not be loaded ({reason}). They come from the Hugging Face "
                "Hub on first use, which needs the network or a filled cache (HF_HOME); without it, use "
                "pretrained=False, or init_from with a file of weights"
            ) from error
        raise
    _require_whole_patches(module, name, spec, pretrained)
    if small_stem or (small_stem is None and small and not pretrained and isinstance(module, (ResNet, ResNetV2))):
        _shrink_stem(module, name, spec)
    apply_vit_options(module, name, **vit_options, pretrained=pretrained)
    return module


def _require_known(name: str, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        names = [*_OWN, *timm.list_models()]
        close = difflib.get_close_matches(architecture, names, n=5, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists timm's names"
        raise ValueError(f"backbone {name!r} is unknown; {hint} (also: {', '.join(_OWN)}, or an nn.Module)")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise ValueError(f"backbone {name!r}: {architecture} has no weights tagged {tag!r}; there are {tags or 'none'}")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise ValueError(f"timm has no pretrained weights for {name!r}; timm.list_pretrained() lists those that exist")


def _require_whole_patches(module: nn.Module, name: str, spec: ImageSpec, pretrained: bool) -> None:
    embed = getattr(module, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    (high, wide), (height, width) = embed.patch_size, spec.size
    if height % high or width % wide:
        raise ValueError(
            f"backbone {name!r} has patches of {high}x{wide} pixels, which do not divide {height}x{width}: the right "
            "or bottom edge of every image would be ignored; choose another image size, or give patch_size or "
            "dynamic_img_pad=True in backbone_options"
        )
    tokens = (height // high) * (width // wide)
    if pretrained and tokens < 16:
        warnings.warn(
            f"backbone {name!r} keeps the {high}x{wide} patches of its pretrained weights, which leaves {tokens} "
            f"tokens of an image of {height}x{width}; a larger image_size, or a smaller patch_size in backbone_options "
            "(the weights are resampled), sees more",
            stacklevel=3,
        )


def _shrink_stem(module: nn.Module, name: str, spec: ImageSpec) -> None:
    """Replace a ResNet's stem by one 3x3 convolution of stride 1, without a max-pool."""
    if not isinstance(module, (ResNet, ResNetV2)):
        raise ValueError(f"small_stem=True works for timm's ResNets, not for {name!r} ({type(module).__name__})")
    old = module.conv1 if isinstance(module, ResNet) else module.stem
    # a deep stem (ResNet-C, -D) is several convolutions; the last one's width is what the first stage expects
    last = [m for m in old.modules() if isinstance(m, nn.Conv2d)][-1]
    like = last.weight
    conv = nn.Conv2d(spec.channels, last.out_channels, 3, 1, 1, bias=False, device=like.device, dtype=like.dtype)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet has it
    if isinstance(module, ResNet):
        module.conv1 = conv  # type: ignore[assignment]
        module.maxpool = nn.Identity()  # type: ignore[assignment]
        return
    stem = OrderedDict[str, nn.Module](conv=conv)
    for key in ("norm", "norm3"):  # the last norm of a plain or deep stem; a pre-activated network has none there
        if hasattr(module.stem, key):
            stem["norm"] = getattr(module.stem, key)
    module.stem = nn.Sequential(stem)


def _features(module: nn.Module, name: str, spec: ImageSpec) -> int:
    """D, found by two blank images in eval mode."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    blank = torch.zeros(2, spec.channels, spec.height, spec.width, device=like.device, dtype=like.dtype)
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            out = module(blank)
    except Exception as error:
        raise ValueError(
            f"backbone {name!r} cannot take images of {_shape(spec)}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        for m, training in modes:
            m.training = training
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != 2:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(
            f"backbone {name!r} must map (B, C, H, W) to pooled features (B, D); for B=2 images of {_shape(spec)} it "
            f"gave {got}"
        )
    return out.shape[1]


def _checkpoint(module: nn.Module, name: str) -> None:
    switch = getattr(module, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError("it has no method set_grad_checkpointing")
        switch(True)
    except AssertionError as error:  # timm's way to say no
        raise ValueError(f"gradient_checkpointing=True is not supported by backbone {name!r}: {error}") from error


def _shape(spec: ImageSpec) -> str:
    return f"{spec.channels} channel{'s' * (spec.channels > 1)} and {spec.height}x{spec.width} pixels"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
