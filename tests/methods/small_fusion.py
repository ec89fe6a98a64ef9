"""Fusion in a size for tests."""

import torch

from lit_ssl import Fusion, ImageSpec
from lit_ssl.views import with_keys, with_views

BACKBONES = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_options": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4},
        "decoder_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "convnet": {
        "backbone": "convnet",
        "backbone_options": {"width": 8, "stages": 2},
        "decoder_width": 8,
        "mask_patch": 4,
    },
    "mlp": {"backbone": "mlp", "backbone_options": {"hidden": (32, 16)}, "decoder_hidden": (24,)},
}
WEIGHTS = [(0.03, 0.679, 0.291), (0.5, 1, 0), (0.5, 0, 0.2), (0, 1, 0.2), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


def fusion(backbone="mlp", weights=(0.03, 0.679, 0.291), spec=None, **kwargs):
    names = ("contrastive_weight", "reconstruction_weight", "denoising_weight")
    arguments = {"projector_hidden": 16, "projector_dim": 8, **dict(zip(names, weights, strict=True))}
    method = Fusion(spec=spec or ImageSpec(16, 1), seed=0, **{**arguments, **BACKBONES[backbone], **kwargs})
    method.configure_model()
    return method


def batch_for(method, images, rows=slice(None)):
    index = torch.arange(len(images))[rows]
    batch = {"image": images[rows], "index": index, "label": torch.full((len(index),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)
