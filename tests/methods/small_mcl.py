"""MCL in a size for tests."""

import pytest
import torch

from lit_ssl import MCL, ImageSpec
from lit_ssl.views import with_keys, with_views

MODES = ("shared", "independent", "complement")
LEAK = pytest.mark.filterwarnings("ignore:mask_mode='complement'")
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4},
}
MLP = {"backbone": "mlp", "backbone_options": {"hidden": (32, 16)}}
CONV = {"backbone": "convnet", "backbone_options": {"width": 8, "stages": 2}}
BACKBONES = pytest.mark.parametrize("backbone", [VIT, MLP, CONV], ids=["vit", "mlp", "convnet"])
SMALL = {"projector_hidden": 16, "projector_dim": 8}


def mcl(backbone=VIT, spec=None, **kwargs):
    method = MCL(spec=spec or ImageSpec(16, 1), **{**SMALL, **backbone, **kwargs})
    method.configure_model()
    return method


def batch_for(method, images):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)
