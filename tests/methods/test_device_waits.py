"""No step waits for the device: its values cannot be read here, and a copy that blocks is an error."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_ssl import MAE, MCL, VAE, Fusion, ImageSpec, LeJEPA, MoCo, SimCLR
from lit_ssl.views import BYOLViews, MultiCropViews, SimCLRViews, SingleView, with_keys, with_views

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
CONVNET = {"backbone": "convnet", "backbone_options": {"width": 8, "stages": 2}}
HEAD = {"projector_hidden": 16, "projector_dim": 8}
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "decoder_width": 8}
CASES = {
    "simclr": (
        SimCLR,
        {**CONVNET, **HEAD, "views": SimCLRViews(blur=0.5), "beta": 1.0, "tau_plus": 0.1, "chunk_size": 3},
    ),
    "moco": (MoCo, {**CONVNET, **HEAD, "views": BYOLViews(blur=(1.0, 0.1)), "queue_size": 16}),
    "mae": (MAE, {**VIT, **DECODER}),
    "mae-noise": (MAE, {**CONVNET, **DECODER, "mask_fill": "noise"}),
    "mcl": (MCL, {**VIT, **HEAD}),
    "mcl-noise": (MCL, {**CONVNET, **HEAD, "mask_fill": "noise", "mask_mode": "independent"}),
    "fusion": (Fusion, {**VIT, **HEAD, **DECODER}),
    "fusion-noise": (Fusion, {**CONVNET, **HEAD, **DECODER, "mask_fill": "noise"}),
    "vae": (
        VAE,
        {**CONVNET, "views": SingleView(flip=0.5), "decoder_width": 8, "binarize": "dynamic", "free_bits": 0.1},
    ),
    "lejepa": (LeJEPA, {**CONVNET, **HEAD, "views": MultiCropViews(local_views=2), "num_directions": 16}),
}


class Copies(TorchDispatchMode):
    """Notes each copy to another device that would make the host wait."""

    def __init__(self):
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            source, target = args[0].device, kwargs.get("device") or args[0].device
            if source != target:
                self.blocking.append((source, target, tuple(args[0].shape)))
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_back_from_the_device(name, monkeypatch, images):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device used here
    kind, options = CASES[name]
    channels = 1 if name == "vae" else 3  # a binary likelihood is of gray images
    method = kind(spec=ImageSpec(16, channels), **options)
    method.configure_model()
    method.to("meta")
    batch = {"image": images[:8].repeat(1, channels, 1, 1), "index": torch.arange(8), "label": torch.full((8,), -1)}
    batch = with_keys(batch, 0, 0)
    batch["image"] = batch["image"].to("meta")
    with Copies() as copies:
        losses = method.loss(with_views(batch, method.views, method.spec, torch.float32))
        losses["loss"].backward()
    assert {(value.device.type, value.shape) for value in losses.values()} == {("meta", ())}
    assert copies.blocking == []


def test_a_copy_that_blocks_would_be_seen():
    with Copies() as copies:
        torch.zeros(3).to("meta")
        torch.zeros(3).to("meta", non_blocking=True)
    assert [shape for *_, shape in copies.blocking] == [(3,)]
