"""MAE in runs: it learns, resumes, trains in any precision, compiled or not."""

import pytest
import torch
from small_mae import DECODER, OTHERS, VIT, batch_for, keys, mae

from lit_ssl import MAE
from lit_ssl.datamodules import Quickstart
from lit_ssl.losses import masked_mse, normalize_patches
from lit_ssl.networks import mask_of
from lit_ssl.views import SingleView


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "mlp"])
def test_a_short_run_beats_the_mean_patch(backbone, make_trainer):
    class Compared(MAE):
        def loss(self, batch):
            target = self.grid.patchify(self.normalize(batch["views"][0]))
            mask = mask_of(self.visible_patches(batch["key"]), self.grid.tokens)
            place = target.mean(0, keepdim=True).expand_as(target)  # of this very batch: the best that needs no image
            return {**super().loss(batch), "place": masked_mse(place, target, mask)}

    options = {"embed_dim": 48, "depth": 2, "num_heads": 2} if backbone.startswith("vit") else {}
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    method = Compared(
        backbone=backbone, backbone_options=options, norm_pix=False, lr=5e-3, lr_scaling="none", seed=0, **decoder
    )
    trainer = make_trainer(limit_train_batches=50, limit_val_batches=2)
    trainer.fit(method, Quickstart(batch_size=96))
    loss, trivial = (trainer.callback_metrics[f"val/{name}"] for name in ("loss", "place"))
    assert loss < 0.85 * trivial


def test_normalised_patches_are_learnt_too(make_trainer, spec):
    """Half of the images have stripes across, half down: what is visible tells what is hidden."""
    stripes = ((torch.arange(16) % 4 < 2) * 255).to(torch.uint8).expand(16, 16)
    images = torch.stack([stripes, stripes.T]).repeat(64, 1, 1)[:, None]
    method = mae(
        spec, lr=1e-2, lr_scaling="none", views=SingleView(), seed=0, options={"patch_size": 4}, decoder_dim=32
    )
    loader = torch.utils.data.DataLoader(images, batch_size=32)
    trainer = make_trainer(max_epochs=16)
    trainer.fit(method, loader, loader)
    target, _, _ = normalize_patches(method.grid.patchify(images / 255.0))
    mean_patch = (target - target.mean((0, 1))).square().mean()
    assert trainer.callback_metrics["val/loss"] < 0.1 * mean_patch


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "convnet", "mlp"])
def test_a_checkpoint_of_a_plain_loaders_run_embeds_and_reconstructs(
    backbone, spec, loader, images, make_trainer, tmp_path
):
    method = MAE(spec=spec, backbone=backbone, backbone_options=OTHERS.get(backbone, VIT), **DECODER)
    trainer = make_trainer()
    trainer.fit(method, loader, loader)
    assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = MAE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.views == method.views
    assert torch.equal(loaded.represent(images), method.represent(images))
    for name, column in method.reconstruct(images, keys(64)).items():
        assert torch.equal(loaded.reconstruct(images, keys(64))[name], column)
    untrained = method.untrained()
    assert not torch.equal(untrained.represent(images), method.represent(images))
    assert torch.equal(untrained.represent(images), loaded.untrained().represent(images))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_other_precisions_train(precision, fill, spec, images, loader, make_trainer):
    for backbone in ("vit_small_patch16_224", "convnet"):
        options = OTHERS.get(backbone, VIT)
        method = MAE(spec=spec, backbone=backbone, backbone_options=options, mask_fill=fill, **DECODER)
        trainer = make_trainer(precision=precision, limit_train_batches=2)
        trainer.fit(method, loader, loader)
        assert trainer.callback_metrics["val/loss"].isfinite()
        assert method.reconstruct(images[:4], keys(4))["output"].dtype == torch.float32


def test_compiling_is_of_a_vits_blocks_which_masked_encoding_goes_through(spec):
    compiled, plain = mae(spec, compile=True), mae(spec)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert all(block._compiled_call_impl is not None for block in compiled.backbone.blocks)
    assert compiled.backbone._compiled_call_impl is None
    assert mae(spec, "mlp", compile=True).backbone._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_vit_has_the_same_loss_and_gradients(spec, images):
    gradients = []
    for compiled in (False, True):
        method = mae(spec, compile=compiled)
        loss = method.loss(batch_for(method, images[:8]))["loss"]
        loss.backward()
        gradients.append([loss.detach()] + [p.grad for p in method.parameters() if p.requires_grad])
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-6)
