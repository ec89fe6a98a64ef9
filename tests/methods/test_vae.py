import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.utils.data import DataLoader

from lit_ssl import VAE, ImageSpec
from lit_ssl.datamodules import Quickstart
from lit_ssl.random import normal
from lit_ssl.views import clean, with_keys, with_views


def vae(spec, tiny, **kwargs):
    method = VAE(spec=spec, **{**tiny, "latent_dim": 4, "decoder_hidden": (24,), **kwargs})
    method.configure_model()
    return method


def batch_for(method, images, epoch=0):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, epoch), method.views, method.spec, method.dtype)


KINDS = {
    "gray": {},
    "static": {"binarize": "static"},
    "dynamic": {"binarize": "dynamic"},
    "beta": {"beta": 4.0, "free_bits": 0.01},
    "gaussian": {"likelihood": "gaussian"},
    "fixed": {"likelihood": "gaussian", "sigma": 0.2},
}


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


# Numbers stay finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [-1e30, 1e30])
def test_a_log_variance_is_bounded(dtype, scale, spec, tiny, images):
    method = vae(spec, tiny, iwae_samples=3).to(dtype)
    with torch.no_grad():
        method.log_variance_head.bias.fill_(scale)
    batch = batch_for(method, images)
    _, log_variance = method.posterior(batch["views"][0])
    assert log_variance.abs().max() == 10
    losses = method.loss(batch)
    assert all(value.isfinite() for value in losses.values())
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    method.eval()
    assert method.loss(batch)["iwae"].isfinite()


def test_near_zero_the_bound_is_not_felt(spec, tiny, images):
    method = vae(spec, tiny)
    with torch.no_grad():
        method.log_variance_head.weight.zero_()
        method.log_variance_head.bias.copy_(torch.tensor([-1.0, 0.0, 0.5, 1.0]))
    _, log_variance = method.posterior(clean(images, spec))
    torch.testing.assert_close(log_variance[0], torch.tensor([-1.0, 0.0, 0.5, 1.0]), atol=0.004, rtol=0)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["dynamic", "gaussian"])
def test_other_precisions_train(precision, kind, spec, tiny, loader, make_trainer):
    method = VAE(spec=spec, iwae_samples=2, decoder="conv", decoder_width=8, **tiny, **KINDS[kind])
    trainer = make_trainer(precision=precision)
    trainer.fit(method, loader, loader)
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    assert {"train/elbo", "train/reconstruction", "train/kl", "val/iwae"} <= set(trainer.callback_metrics)


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


# What it is for


def test_it_learns_on_quickstart(make_trainer):
    method = VAE(latent_dim=16, backbone="mlp", binarize="dynamic", kl_warmup_epochs=0.5, iwae_samples=4)
    trainer = make_trainer(limit_val_batches=2)
    data = Quickstart(batch_size=128)
    trainer.validate(method, data, verbose=False)
    before = trainer.callback_metrics["val/elbo"]
    trainer.fit(method, data)
    after = trainer.callback_metrics
    assert before < -500  # about log 2 a pixel
    assert after["val/elbo"] > -400
    assert after["val/iwae"] > after["val/elbo"]
    assert after["val/kl"] > 2


def test_an_embedding_is_the_posteriors_mean(spec, tiny, images):
    method = vae(spec, tiny)
    mean, _ = method.posterior(clean(images, spec))
    assert torch.equal(method.represent(images), mean)
    assert method.represent(images).shape == (64, method.num_features) == (64, 4)
    static = vae(spec, tiny, binarize="static")
    binary = ((images > 127) * 255).to(torch.uint8)
    assert torch.equal(static.represent(images), static.represent(binary))


def test_it_loads_from_a_checkpoint(spec, tiny, loader, images, make_trainer, tmp_path):
    options = {"latent_dim": 3, "decoder": "conv", "decoder_width": 8, "likelihood": "gaussian"}
    method = VAE(spec=spec, **options, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = VAE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(loaded.represent(images), method.represent(images))
    assert torch.equal(loaded.sample(3), method.sample(3))
    assert loaded.pixel_log_variance == method.pixel_log_variance


def test_decoding_and_sampling_leave_the_module_alone(spec, images):
    method = VAE(spec=spec, binarize="dynamic", decoder_width=8)
    method.configure_model()
    method.train()
    method.decoder.eval()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    samples = method.sample(6)
    columns = method.reconstruct(images, torch.arange(64))
    assert torch.equal(torch.rand(1), expected)
    assert method.backbone.training
    assert not method.decoder.training
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert list(columns) == ["input", "binarised", "output"]
    for image in (samples, *columns.values()):
        assert image.shape[1:] == (1, 16, 16)
        assert not image.requires_grad
        assert 0 <= image.min() <= image.max() <= 1
    torch.testing.assert_close(samples[:2], method.sample(2))
    assert (samples[:2] - method.sample(2, seed=1)).abs().max() > 1e-3
    torch.testing.assert_close(columns["input"], images / 255)
    method.eval()
    assert torch.equal(columns["output"], method.decode(method.posterior(columns["binarised"])[0]))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_images_of_any_shape_and_a_backbone_of_ones_own(likelihood, make_trainer):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=2)

        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    spec = ImageSpec((20, 12), 3)
    images = torch.randint(256, (32, 3, 20, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    method = VAE(spec=spec, backbone=Own(), latent_dim=3, likelihood=likelihood, decoder_width=8)
    make_trainer().fit(method, DataLoader(images, batch_size=16))
    columns = method.reconstruct(images[:2], torch.arange(2))
    assert list(columns) == ["input", "output"]
    assert columns["output"].shape == (2, 3, 20, 12)
    assert method.untrained().represent(images).shape == (32, 3)


def test_the_default_keeps_where_things_are(spec):
    method = VAE(spec=ImageSpec(28, 1))
    method.configure_model()
    assert method.backbone.grid == 4
    assert VAE(backbone_options={"grid": 2}).hparams["backbone_options"] == {"grid": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be an integer of at least 1, got 0"),
        ({"likelihood": "laplace"}, "likelihood must be one of bernoulli, gaussian, got 'laplace'"),
        ({"binarize": True}, "binarize must be one of none, static, dynamic, got True"),
        ({"binarize": "static", "likelihood": "gaussian"}, "binarize must be none with a gaussian .*got 'static'"),
        ({"sigma": 0.1}, "sigma must be None with a bernoulli likelihood, got 0.1"),
        ({"sigma": 0.0, "likelihood": "gaussian"}, "sigma must be a finite number above 0, got 0.0"),
        ({"beta": -1.0}, "beta must be a finite number of at least 0, got -1.0"),
        ({"kl_warmup_epochs": -1}, "kl_warmup_epochs must be .*got -1"),
        ({"free_bits": math.nan}, "free_bits must be .*got nan"),
        ({"iwae_samples": -1}, "iwae_samples must be an integer of at least 0, got -1"),
        ({"decoder": "linear"}, "decoder must be one of conv, mlp, got 'linear'"),
        ({"decoder_width": 7}, "decoder_width must be an integer of at least 8, got 7"),
        ({"decoder_hidden": [0]}, "decoder_hidden must be an integer of at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)
