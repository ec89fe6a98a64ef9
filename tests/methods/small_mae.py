"""MAE in a size for tests."""

import torch

from lit_ssl import MAE
from lit_ssl.random import sample_key
from lit_ssl.views import with_keys, with_views

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "decoder_width": 8, "decoder_hidden": [16]}
OTHERS = {"convnet": {"width": 4, "stages": 2}, "mlp": {"hidden": [32, 16]}}


def mae(spec, backbone="vit_small_patch16_224", options=None, **kwargs):
    options = {**OTHERS.get(backbone, VIT), **(options or {})}
    method = MAE(spec=spec, backbone=backbone, backbone_options=options, **{**DECODER, **kwargs})
    method.configure_model()
    return method


def keys(rows):
    return sample_key(0, 0, torch.arange(rows))


def pictures(rows, spec):
    shape = (rows, spec.channels, *spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch_for(method, images):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)
