"""VAE: finite numbers, what it is for, interfaces and arguments."""

import math

import pytest
import torch
from small_vae import KINDS, batch_for, vae
from torch import nn
from torch.utils.data import DataLoader

from lit_ssl import VAE, ImageSpec
from lit_ssl.datamodules import Quickstart
from lit_ssl.views import clean

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


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_colour_is_not_binarised_but_what_was_trained_so_is_loaded(binarize, make_trainer):
    pixels = torch.arange(8 * 3 * 64).reshape(8, 3, 8, 8).remainder(251).to(torch.uint8)
    loader = torch.utils.data.DataLoader(pixels, batch_size=4)
    colour = {"spec": ImageSpec(8, 3), "backbone": "mlp", "latent_dim": 2}
    method = VAE(binarize=binarize, **colour)
    method.configure_model()
    with pytest.raises(ValueError, match=f"binarize='{binarize}' .* 3 channels .*likelihood='gaussian'"):
        make_trainer(max_epochs=1).fit(method, loader)
    make_trainer(max_epochs=1).fit(VAE(likelihood="gaussian", **colour), loader)
