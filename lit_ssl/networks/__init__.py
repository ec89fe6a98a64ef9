"""Backbones by name, masked encoding, heads and decoders, and norms that synchronise on any backend."""

from .backbones import build_backbone, load_backbone
from .decoders import ConvDecoder, MLPDecoder, build_patch_decoder
from .heads import MLPHead
from .masked import encode_masked, initialize_vit, is_vit, patch_grid, sincos_positions
from .norms import synchronize_batchnorm
from .patches import PatchGrid, mask_of, random_keep, visible_tokens
from .small import MLP, ConvNet

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvNet",
    "MLPDecoder",
    "MLPHead",
    "PatchGrid",
    "build_backbone",
    "build_patch_decoder",
    "encode_masked",
    "initialize_vit",
    "is_vit",
    "load_backbone",
    "mask_of",
    "patch_grid",
    "random_keep",
    "sincos_positions",
    "synchronize_batchnorm",
    "visible_tokens",
]
