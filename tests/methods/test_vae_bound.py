"""VAE's bound: term by term, warmed up, with free bits, and importance-weighted."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small_vae import KINDS, batch_for, vae
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.utils.data import DataLoader

from lit_ssl import VAE
from lit_ssl.datamodules import Quickstart
from lit_ssl.random import normal
from lit_ssl.views import clean


@pytest.mark.parametrize("kind", KINDS)
def test_its_loss_is_the_bound_term_by_term(kind, spec, tiny, images):
    method = vae(spec, tiny, **KINDS[kind]).double()
    batch = batch_for(method, images[:12])
    x = method._binarized(batch["views"][0], batch["key"])
    features = torch.relu(method.backbone((x - 0.5) / 0.5))  # the spec's statistics
    mean, log_variance = method.mean_head(features), 10 * torch.tanh(method.log_variance_head(features) / 10)
    q = Normal(mean, (log_variance / 2).exp())
    output = method.decoder(mean + (log_variance / 2).exp() * normal(batch["key"], "vae/noise", (4,)))
    if kind == "gaussian":
        assert method.pixel_log_variance.item() == pytest.approx(2 * math.log(0.5), rel=0.01)
        pixels = Normal(output.sigmoid(), (5 * torch.tanh(method.pixel_log_variance / 10)).exp()).log_prob(x)
    elif kind == "fixed":
        pixels = Normal(output.sigmoid(), 0.2).log_prob(x)
    else:
        pixels = Bernoulli(logits=output, validate_args=False).log_prob(x)
    reconstruction = -pixels.sum((1, 2, 3)).mean()
    kl = kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).mean(0)
    losses = method.loss(batch)
    assert list(losses) == ["loss", "elbo", "reconstruction", "kl"]
    torch.testing.assert_close(losses["reconstruction"], reconstruction)
    torch.testing.assert_close(losses["kl"], kl.sum())
    torch.testing.assert_close(losses["elbo"], -reconstruction - kl.sum())
    cost = 4 * kl.clamp(min=0.01).sum() if kind == "beta" else kl.sum()
    torch.testing.assert_close(losses["loss"], reconstruction + cost)


def test_a_blank_decoder_costs_a_bit_a_pixel(spec, tiny, images):
    """A reconstruction averaged over pixels, or left in bits, would not be 256 log 2."""
    method = vae(spec, tiny, binarize="static")
    nn.init.zeros_(method.decoder.layers[-1].weight)
    nn.init.zeros_(method.decoder.layers[-1].bias)
    losses = method.loss(batch_for(method, images))
    assert losses["reconstruction"].item() == pytest.approx(256 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind, spec, tiny, images):
    method = vae(spec, tiny, **KINDS[kind])
    method.loss(batch_for(method, images))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_noise_is_the_samples_own(spec, tiny, images):
    """Half a batch draws what the whole does, and another epoch draws anew."""
    method = vae(spec, tiny).double()
    whole = method.loss(batch_for(method, images))["reconstruction"]
    batches = [batch_for(method, images) for _ in range(2)]
    for batch, rows in zip(batches, (slice(32), slice(32, None)), strict=True):
        batch.update(views=[batch["views"][0][rows]], key=batch["key"][rows])
    halves = [method.loss(batch)["reconstruction"] for batch in batches]
    torch.testing.assert_close(sum(halves) / 2, whole)
    assert abs(method.loss(batch_for(method, images, epoch=1))["reconstruction"] - whole) > 1e-6


def test_binarisation(spec, tiny, images):
    x = clean(images, spec)
    key = batch_for(vae(spec, tiny), images)["key"]
    assert vae(spec, tiny)._binarized(x, key) is x
    assert torch.equal(vae(spec, tiny, binarize="static")._binarized(x, key), (x > 0.5).float())
    method = vae(spec, tiny, binarize="dynamic")
    drawn = torch.stack([method._binarized(x, batch_for(method, images, epoch)["key"]) for epoch in range(300)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], method._binarized(x, key))  # epoch 0 again
    spread = (x * (1 - x) / 300).sqrt().clamp(min=1e-3)
    assert ((drawn.mean(0) - x) / spread).abs().max() < 6


# A posterior that collapses


def collapsing(spec, tiny, images, make_trainer, **kwargs):
    """Pixels so uncertain that a latent costs more than it tells: the best posterior is the prior."""
    arguments = {"likelihood": "gaussian", "sigma": 1.0, "lr": 1e-2, "beta": 1.5, "latent_dim": 4}
    method = VAE(spec=spec, **{**tiny, "decoder_hidden": (24,), **arguments, **kwargs})
    trainer = make_trainer(max_epochs=60)
    trainer.fit(method, DataLoader(images, batch_size=64), DataLoader(images, batch_size=64))
    output = method.reconstruct(images, torch.arange(64))["output"]
    return trainer.callback_metrics["val/kl"].item(), output


def test_free_bits_rescue_a_collapsed_posterior(spec, tiny, images, make_trainer):
    x = clean(images, spec)
    kl, output = collapsing(spec, tiny, images, make_trainer)
    assert kl < 0.02
    assert output.std(0).mean() < 0.005  # all images are reconstructed as one
    rescued, told_apart = collapsing(spec, tiny, images, make_trainer, free_bits=0.5)
    assert rescued > 1  # of the 4 x 0.5 nats that are free
    assert told_apart.std(0).mean() > 5 * output.std(0).mean()
    assert (told_apart - x).square().mean() < 0.9 * (output - x).square().mean()


# Evaluation


def test_the_importance_weighted_bound_in_validation(spec, tiny, images):
    """Above the bound of one sample, rising with K, the same whatever is decoded at once, and not in training."""
    method = vae(spec, tiny, iwae_samples=200, binarize="static").double().eval()
    batch = batch_for(method, images, epoch=-1)
    bounds = {}
    for k in (1, 5, 12, 200):
        method.iwae_samples = k
        losses = method.loss(batch)
        assert not losses["iwae"].requires_grad
        bounds[k] = losses["iwae"].item()
    assert bounds[1] < bounds[5] < bounds[12] < bounds[200]
    assert bounds[200] > losses["elbo"].item()
    assert bounds[1] == pytest.approx(losses["elbo"].item(), abs=3)
    parts = [{**batch, "views": [batch["views"][0][r]], "key": batch["key"][r]} for r in torch.arange(64).split(16)]
    assert sum(method.loss(part)["iwae"].item() for part in parts) / 4 == pytest.approx(bounds[200], rel=1e-12)
    assert "iwae" not in method.train().loss(batch)


def test_the_decoder_sees_few_samples_at_once(spec, tiny, images):
    method = vae(spec, tiny, iwae_samples=20).eval()
    rows = []
    method.decoder.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    method.loss(batch_for(method, images[:5]))
    assert rows == [5, 40, 40, 20]


def test_a_rank_without_images_has_no_loss(spec, tiny, images):
    method = vae(spec, tiny, iwae_samples=3, decoder="conv", decoder_width=8).eval()
    losses = method.loss(batch_for(method, images[:0]))
    assert all(value == 0 for value in losses.values())


class Weights(Callback):
    """The share of beta at each step and validation, from the logged terms."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, *args):
        self.train.append(self._share(trainer, "train"))

    def on_validation_end(self, trainer, *args):
        self.val.append(self._share(trainer, "val"))

    def _share(self, trainer, stage):
        loss, reconstruction, kl = (trainer.callback_metrics[f"{stage}/{n}"] for n in ("loss", "reconstruction", "kl"))
        return ((loss - reconstruction) / kl).item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_kl_warms_up_by_the_step_and_is_whole_in_validation(accumulate, spec, tiny, loader, make_trainer):
    weights = Weights()
    method = VAE(spec=spec, beta=3.0, kl_warmup_epochs=1.5, **tiny)
    trainer = make_trainer(
        max_epochs=2,
        precision="64-true",
        log_every_n_steps=1,
        callbacks=[weights],
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
    )
    trainer.fit(method, loader, loader)
    ramp = 6 / accumulate  # optimizer steps: an epoch has four batches
    expected = [3 * min(1, (batch // accumulate) / ramp) for batch in range(8)]
    assert weights.train == pytest.approx(expected, abs=1e-9)
    assert weights.val == pytest.approx([3.0, 3.0])


def test_a_run_resumed_in_its_warm_up_ends_as_one_never_stopped(make_trainer, tmp_path):
    def run(**kwargs):
        method = VAE(backbone="mlp", latent_dim=4, binarize="dynamic", free_bits=0.1, kl_warmup_epochs=1.5)
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = make_trainer(
            max_epochs=2, limit_train_batches=8, limit_val_batches=1, enable_checkpointing=True, callbacks=[saver]
        )
        trainer.fit(method, Quickstart(batch_size=32), **kwargs)
        assert trainer.global_step == 16
        return method.state_dict()

    whole, resumed = run(), run(ckpt_path=tmp_path / "step=5.ckpt")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_data_of_unknown_length_cannot_be_warmed_up_over(spec, tiny, images, make_trainer):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(images)

    method = VAE(spec=spec, kl_warmup_epochs=1, **tiny)
    with pytest.raises(ValueError, match="kl_warmup_epochs must be 0 for data of unknown length, got 1"):
        make_trainer(max_steps=2, max_epochs=-1).fit(method, DataLoader(Endless(), batch_size=16))
    trainer = make_trainer(max_epochs=1, limit_train_batches=2)
    trainer.fit(VAE(spec=spec, kl_warmup_epochs=1, **tiny), DataLoader(Endless(), batch_size=16))
    assert trainer.global_step == 2
