"""Losses as pure functions of tensors: no module, no trainer, no logging."""

from .contrastive import info_nce, nt_xent
from .reconstruction import masked_mse

__all__ = ["info_nce", "masked_mse", "nt_xent"]
