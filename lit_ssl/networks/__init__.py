"""Backbones by name, heads, and norms that synchronise on any backend."""

from .backbones import build_backbone, load_backbone
from .heads import MLPHead
from .norms import synchronize_batchnorm
from .small import MLP, ConvNet

__all__ = ["MLP", "ConvNet", "MLPHead", "build_backbone", "load_backbone", "synchronize_batchnorm"]
