"""Losses as pure functions of tensors: no module, no trainer, no logging."""

from .contrastive import info_nce, nt_xent
from .cosine import cosine_contrast
from .elbo import (
    bernoulli_log_likelihood,
    elbo,
    gaussian_kl,
    gaussian_log_likelihood,
    iwae_bound,
    log_importance_weight,
)
from .image_text import clip_loss, siglip_loss
from .reconstruction import masked_mse, normalize_patches
from .sigreg import sigreg

__all__ = [
    "bernoulli_log_likelihood",
    "clip_loss",
    "cosine_contrast",
    "elbo",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "info_nce",
    "iwae_bound",
    "log_importance_weight",
    "masked_mse",
    "normalize_patches",
    "nt_xent",
    "siglip_loss",
    "sigreg",
]
