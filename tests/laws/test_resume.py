"""Law 2, where it stands: a run resumed from the middle of an epoch ends with the weights of one never stopped."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ssl import CLIP, MAE, MCL, VAE, Fusion, LeJEPA, MoCo, SimCLR
from lit_ssl.callbacks import OnlineLinearProbe
from lit_ssl.datamodules import CaptionedShapes, Quickstart

TINY = {"backbone": "convnet", "backbone_options": {"width": 4, "stages": 2, "stem_stride": 2}}
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "lr": 1e-2,
}
PROJECTOR = {"projector_hidden": 16, "projector_dim": 8}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
METHODS = {
    "simclr": lambda: SimCLR(projector_hidden=16, projector_dim=8, optimizer="adamw", lr=1e-2, **TINY),
    "moco": lambda: MoCo(projector_hidden=16, projector_dim=8, queue_size=100, **TINY),
    "moco_v3": lambda: MoCo(
        queue_size=0, predictor=True, symmetric=True, momentum_schedule="cosine", projector_hidden=16, **TINY
    ),
    "mae": lambda: MAE(**DECODER, **VIT),
    "mcl": lambda: MCL(**PROJECTOR, **VIT),
    "fusion": lambda: Fusion(**PROJECTOR, **DECODER, **VIT),
    "vae": lambda: VAE(latent_dim=4, kl_warmup_epochs=1, lr=1e-2, **TINY),
    "lejepa": lambda: LeJEPA(num_directions=16, **PROJECTOR, **VIT),
    "clip": lambda: CLIP(text_options={"width": 16, "depth": 1, "heads": 2}, mask_ratio=0.5, **VIT),
}


@pytest.mark.parametrize(("method", "workers"), [*((name, 0) for name in METHODS), ("moco", 1)])
def test_mid_epoch_resume_is_bit_identical(method, workers, make_trainer, tmp_path):
    def run(**kwargs):
        module, probe = METHODS[method](), OnlineLinearProbe(every_n_steps=1)
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = make_trainer(
            max_epochs=2,
            limit_train_batches=8,
            limit_val_batches=1,
            enable_checkpointing=True,
            callbacks=[probe, saver],
        )
        data = CaptionedShapes if isinstance(module, CLIP) else Quickstart
        trainer.fit(module, data(batch_size=32, num_workers=workers), **kwargs)
        assert trainer.global_step == 16
        return module.state_dict(), probe.probe.state_dict()

    whole, whole_probe = run()
    torch.manual_seed(99)  # whatever the process drew before
    resumed, resumed_probe = run(ckpt_path=tmp_path / "step=5.ckpt")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert all(torch.equal(resumed_probe[name], weight) for name, weight in whole_probe.items())
