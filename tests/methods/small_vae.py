"""VAE in a size for tests."""

import torch

from lit_ssl import VAE
from lit_ssl.views import with_keys, with_views

KINDS = {
    "gray": {},
    "static": {"binarize": "static"},
    "dynamic": {"binarize": "dynamic"},
    "beta": {"beta": 4.0, "free_bits": 0.01},
    "gaussian": {"likelihood": "gaussian"},
    "fixed": {"likelihood": "gaussian", "sigma": 0.2},
}


def vae(spec, tiny, **kwargs):
    method = VAE(spec=spec, **{**tiny, "latent_dim": 4, "decoder_hidden": (24,), **kwargs})
    method.configure_model()
    return method


def batch_for(method, images, epoch=0):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, epoch), method.views, method.spec, method.dtype)
