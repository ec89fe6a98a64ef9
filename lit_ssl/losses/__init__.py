"""Losses as pure functions of tensors: no module, no trainer, no logging."""

from .contrastive import info_nce, nt_xent

__all__ = ["info_nce", "nt_xent"]
