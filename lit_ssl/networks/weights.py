"""Weights of a backbone from a file, all of them or an error."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lit_ssl.checkpoint import damage_of

__all__ = ["load_backbone"]

_log = logging.getLogger(__name__)
_HEADS = ("fc.", "head.", "classifier.")


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Load ``backbone`` in place from a file of weights; nothing is left at random and nothing is skipped in silence.

    Reads a Lightning or lit_ssl checkpoint (its ``state_dict`` entries named ``backbone.…``), a plain state dict
    (``.pt``, ``.pth``; also under a key ``state_dict`` or ``model``), or ``.safetensors``. Prefixes that
    ``torch.compile`` and data parallel wrappers add are removed. Files are read with ``weights_only=True``: no code in
    them is run.

    Positions of a ViT that was trained on images of another size are resampled, as timm does it.

    Left out, with a note in the log, are entries of a classifier (``fc.``, ``head.``, ``classifier.``) that the
    backbone does not have. Files from before PyTorch 0.4.1 have no ``num_batches_tracked``; those counters then stay.

    Args:
        backbone: the module to fill.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no set of weights, holds no ``backbone.…`` entry where it has a Lightning
            checkpoint's form, or keys are missing, unexpected or of another shape (all are listed).
    """
    path = Path(path)
    weights = {_plain(key): value for key, value in _read(path).items()}
    if any(key.startswith("backbone.") for key in weights):
        weights = {key.removeprefix("backbone."): v for key, v in weights.items() if key.startswith("backbone.")}
    target = {_plain(key): key for key in backbone.state_dict()}
    current = backbone.state_dict()
    _resample_positions(backbone, weights, {key: current[full] for key, full in target.items()})
    heads = [key for key in weights if key not in target and key.startswith(_HEADS)]
    unexpected = [key for key in weights if key not in target and key not in heads]
    missing = [k for k in target if k not in weights and k.rpartition(".")[2] != "num_batches_tracked"]
    mismatched = [
        f"{key} (file {tuple(weights[key].shape)}, backbone {tuple(current[target[key]].shape)})"
        for key in target
        if key in weights and weights[key].shape != current[target[key]].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if keys
    ]
    if problems:
        problems += _other_patches(weights, {key: current[full] for key, full in target.items()})
        raise ValueError(f"{path} does not fit the backbone {type(backbone).__name__}; {'; '.join(problems)}")
    if heads:
        _log.info("%s: a classifier's weights were left out: %s", path, ", ".join(heads))
    backbone.load_state_dict({full: weights.get(key, current[full]) for key, full in target.items()}, strict=True)


_POSITIONS, _PATCHES = "pos_embed", "patch_embed.proj.weight"


def _resample_positions(backbone: nn.Module, weights: dict[str, Tensor], current: Mapping[str, Tensor]) -> None:
    """Positions of a ViT that saw images of another size, on the grid of this one: in place, told in the log."""
    saved, own = weights.get(_POSITIONS), current.get(_POSITIONS)
    embed: Any = getattr(backbone, "patch_embed", None)
    alike = _PATCHES in weights and _PATCHES in current and weights[_PATCHES].shape == current[_PATCHES].shape
    if saved is None or own is None or saved.shape == own.shape or not alike or not hasattr(embed, "grid_size"):
        return
    prefix = own.shape[1] - embed.grid_size[0] * embed.grid_size[1]
    side = math.isqrt(max(saved.shape[1] - prefix, 0))
    if saved.shape[2] != own.shape[2] or side < 1 or side * side != saved.shape[1] - prefix:
        return  # told as what does not fit
    weights[_POSITIONS] = resample_abs_pos_embed(saved, list(embed.grid_size), num_prefix_tokens=prefix)
    rank_zero_info(
        f"positions of {side}x{side} patches in the file were resampled to {embed.grid_size[0]}x{embed.grid_size[1]}"
    )


def _other_patches(weights: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> list[str]:
    """What to do where a ViT's patches have another size than those of the file."""
    if _PATCHES not in weights or _PATCHES not in current:
        return []
    (*_, saved), (*_, own) = weights[_PATCHES].shape, current[_PATCHES].shape
    if saved == own:
        return []
    return [f"the file's patches are {saved} pixels wide, these {own}: give backbone_options patch_size={saved}"]


def _plain(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"init_from: there is no file {path}")
    content: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    else:
        if zipfile.is_zipfile(path) and (damage := damage_of(path)):
            raise ValueError(f"{path} is damaged ({damage})")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises nearly anything on a file that is none of its own
            found = re.search(r"Unsupported \w+.*|PytorchStreamReader failed.*", str(error))
            reason = f" ({found[0]})" if found else ""
            raise ValueError(
                f"{path} cannot be read as weights only{reason}: give a checkpoint, a file of "
                "torch.save(model.state_dict(), path), or one that ends in .safetensors"
            ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors), but {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {sorted(map(str, content))[:10]}"
    return f"a {type(content).__name__}"
