"""VAE: the variational autoencoder, and beta-VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_integer, check_positive
from lit_ssl.losses.elbo import (
    bernoulli_log_likelihood,
    elbo,
    gaussian_log_likelihood,
    iwae_bound,
    log_importance_weight,
)
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLP, ConvDecoder, MLPDecoder
from lit_ssl.networks.decoders import decoder_options
from lit_ssl.random import normal, resolve_seed, sample_key, uniform
from lit_ssl.views import SingleView, View

__all__ = ["VAE"]

BOUND = 10.0  # of a log-variance, to both sides
AT_ONCE = 8  # importance samples of an image that are decoded together


class VAE(SSLModule):
    """An encoder says which Gaussian codes an image may have; a decoder finds the image in a draw of them.

    Source: Kingma & Welling 2013, arXiv:1312.6114. An embedding is the posterior's mean. ``train/elbo``,
    ``train/reconstruction`` and ``train/kl`` are in nats per image: summed over pixels and latents, averaged over the
    global batch. The log-variance r of a head becomes 10 tanh(r / 10): what comes near 0 is left alone, and a variance
    stays between 4.5e-5 and 2.2e4, which no precision overflows.

    Args:
        latent_dim: length of a code. Default 50 (Burda et al. 2016, arXiv:1509.00519, section 5).
        likelihood: of pixels in [0, 1]: ``bernoulli``, with logits from the decoder, or ``gaussian``, whose mean is
            the sigmoid of the decoder's output (appendix C.2).
        binarize: what a Bernoulli likelihood is of. ``none``: pixels as they are, which is no likelihood of gray
            images, only a loss. ``static``: 1 above a half. ``dynamic``: each pixel is 1 with its own probability,
            drawn anew each epoch (Salakhutdinov & Murray 2008), in validation always the same draw. The encoder sees
            what the decoder is to find; :meth:`embed` thresholds too, but takes gray pixels in place of their draws.
        sigma: standard deviation of the Gaussian likelihood in [0, 1] pixel units; None learns one for all pixels
            (Rybkin et al. 2021, arXiv:2006.13202), from that of the data on.
        beta: weight of the KL. Default 1, the bound; above it, beta-VAE (Higgins et al. 2017).
        kl_warmup_epochs: over which that weight rises linearly from 0 (Sønderby et al. 2016, arXiv:1602.02282); may be
            fractional. Validation always takes the whole.
        free_bits: nats of each latent that cost nothing (Kingma et al. 2016, arXiv:1606.04934); default 0.
        iwae_samples: K of ``val/iwae``, the importance-weighted bound (Burda et al. 2016); 0 leaves it out.
        decoder: ``conv``, ``mlp``, or None for the one that suits the backbone.
        decoder_width: channels, at full resolution, of the decoder ``conv``, a multiple of 8. Default 16.
        decoder_hidden: widths of the hidden layers of the decoder ``mlp``. Default one of 256.
        backbone, backbone_options: default ``convnet``, whose default options here are ``{"grid": 4}``: pooled over 4 x
            4 cells, for a mean over the whole image forgets where things are.
        views: default :class:`~lit_ssl.views.SingleView`, the image itself.
        optimizer, lr, weight_decay, lr_scaling, warmup_epochs: default Adam at 1e-3 (Burda et al. 2016, section 5),
            whatever the batch size, without decay and warm-up.
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range, or one that does not go with the likelihood; when training begins,
            ``binarize`` on images of several channels.
    """

    view_count = 1

    def __init__(
        self,
        *,
        latent_dim: int = 50,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        binarize: Literal["none", "static", "dynamic"] = "none",
        sigma: float | None = None,
        beta: float = 1.0,
        kl_warmup_epochs: float = 0,
        free_bits: float = 0.0,
        iwae_samples: int = 0,
        decoder: Literal["conv", "mlp"] | None = None,
        decoder_width: int = 16,
        decoder_hidden: Sequence[int] = (256,),
        backbone: str | nn.Module = "convnet",
        backbone_options: dict[str, Any] | None = None,
        views: View | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_scaling: Literal["linear", "sqrt", "none"] = "none",
        warmup_epochs: float = 0,
        **kwargs: Any,
    ) -> None:
        if backbone == "convnet" and backbone_options is None:
            backbone_options = {"grid": 4}
        super().__init__(
            backbone=backbone,
            backbone_options=backbone_options,
            views=views or SingleView(),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            lr_scaling=lr_scaling,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        check_integer("latent_dim", latent_dim)
        check_choice("likelihood", likelihood, ("bernoulli", "gaussian"))
        check_choice("binarize", binarize, ("none", "static", "dynamic"))
        if binarize != "none" and likelihood != "bernoulli":
            raise ValueError(f"binarize must be none with a gaussian likelihood, got {binarize!r}")
        if sigma is not None:
            check_positive("sigma", sigma)
            if likelihood != "gaussian":
                raise ValueError(f"sigma must be None with a bernoulli likelihood, got {sigma!r}")
        check_positive("beta", beta, zero=True)
        check_positive("kl_warmup_epochs", kl_warmup_epochs, zero=True)
        check_positive("free_bits", free_bits, zero=True)
        check_integer("iwae_samples", iwae_samples, 0)
        if decoder is None:
            decoder = "mlp" if backbone == "mlp" or isinstance(backbone, MLP) else "conv"
        check_choice("decoder", decoder, ("conv", "mlp"))
        sizes = decoder_options(width=decoder_width, hidden=decoder_hidden)
        self.latent_dim, self.likelihood, self.binarize, self.sigma = latent_dim, likelihood, binarize, sigma
        self.beta, self.kl_warmup_epochs, self.free_bits = beta, kl_warmup_epochs, free_bits
        self.iwae_samples = iwae_samples
        self.decoder_kind, self.decoder_width, self.decoder_hidden = decoder, sizes["width"], sizes["hidden"]

    def build_heads(self) -> None:
        assert self.spec is not None
        features: int = self.backbone.num_features  # type: ignore[assignment]
        # The code of an MLP is linear, and two linear maps in a row would be one.
        self.activation = nn.ReLU() if isinstance(self.backbone, MLP) else nn.Identity()
        self.mean_head = nn.Linear(features, self.latent_dim)
        self.log_variance_head = nn.Linear(features, self.latent_dim)
        self.decoder = (
            ConvDecoder(self.latent_dim, self.spec, width=self.decoder_width)
            if self.decoder_kind == "conv"
            else MLPDecoder(self.latent_dim, self.spec, self.decoder_hidden)
        )
        if self.likelihood == "gaussian" and self.sigma is None:
            first = 2 * math.log(sum(self.spec.std) / len(self.spec.std)) / BOUND  # as if all images were their mean
            self.pixel_log_variance = nn.Parameter(torch.tensor(BOUND * math.atanh(max(-0.9, min(first, 0.9)))))

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return self.latent_dim

    # Encoding and decoding

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, Z) each and at least float32, of the codes of images (B, C, h, w) in [0, 1]."""
        features = self.activation(self.backbone(self.normalize(x)))
        mean, log_variance = self.mean_head(features), self.log_variance_head(features)
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(dtype), _bounded(log_variance.to(dtype))

    def embed(self, x: Tensor) -> Tensor:
        """The posterior's mean (B, Z) of clean images (B, C, H, W) in [0, 1]."""
        return self.posterior(_thresholded(x) if self.binarize == "static" else x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Codes (B, Z) to the images (B, C, h, w) in [0, 1] that they stand for: each pixel's mean; no gradient."""
        with self.evaluating():
            return self._decoded(z.to(self.device)).float().sigmoid()

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` images of the prior, (n, C, h, w) in [0, 1]; the same for the same weights and seed.

        Raises:
            ValueError: ``n`` is below 1, or ``seed`` no seed.
        """
        check_integer("n", n)
        key = sample_key(resolve_seed(seed), 0, torch.arange(n, device=self.device))
        return self.decode(normal(key, "vae/sample", (self.latent_dim,)))

    def reconstruct(self, image: Tensor, key: Tensor) -> dict[str, Tensor]:
        """What a clean image becomes: columns of images (B, C, h, w) in [0, 1], in evaluation mode, without gradient.

        Args:
            image: uint8 (B, C, H, W).
            key: int64 (B,), from which a dynamic binarisation draws.

        Returns:
            ``input``; ``binarised``, where the images are; ``output``, decoded from the posterior's mean.
        """
        with self.evaluating():
            x = self.clean(image)
            seen = self._binarized(x, key)
            columns = {"input": x} if self.binarize == "none" else {"input": x, "binarised": seen}
            return {**columns, "output": self.decode(self.posterior(seen)[0])}

    def _decoded(self, z: Tensor) -> Tensor:
        return self.decoder(z.to(self.dtype))  # codes are at least float32, weights may be narrower

    def _binarized(self, x: Tensor, key: Tensor) -> Tensor:
        if self.binarize == "none":
            return x
        if self.binarize == "static":
            return _thresholded(x)
        return (uniform(key.to(x.device, non_blocking=True), "vae/binarize", x.shape[1:]) < x).to(x.dtype)

    # Training

    def on_fit_start(self) -> None:
        """Colour is not binarised: refused in training alone, so that a model that was trained so still loads."""
        super().on_fit_start()
        assert self.spec is not None
        if self.binarize != "none" and self.spec.channels > 1:
            raise ValueError(
                f"binarize={self.binarize!r} would turn images of {self.spec.channels} channels into black and white "
                "in each of them: for colour take likelihood='gaussian' and binarize='none' "
                "(--model.likelihood gaussian --model.binarize none)"
            )

    def loss(self, batch: Batch) -> Losses:
        (view,) = batch["views"]
        key = batch["key"].to(view.device, non_blocking=True)
        x = self._binarized(view, key)
        mean, log_variance = self.posterior(x)
        noise = normal(key, "vae/noise", (self.latent_dim,)).to(mean.dtype)
        output = self._decoded(mean + noise * torch.exp(log_variance / 2))
        beta = self.beta * self._warmup()
        terms = elbo(self._log_likelihood(output, x), mean, log_variance, beta=beta, free_bits=self.free_bits)
        losses = terms._asdict()
        if self.iwae_samples and not self.training:
            losses["iwae"] = self._iwae(x, key, mean, log_variance)
        return losses

    def _log_likelihood(self, output: Tensor, x: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(output, x)
        spread = _bounded(self.pixel_log_variance) if self.sigma is None else 2 * math.log(self.sigma)
        return gaussian_log_likelihood(output.to(torch.promote_types(output.dtype, torch.float32)).sigmoid(), x, spread)

    def _warmup(self) -> float:
        """The share of beta at this step: a function of the step alone, so that a resumed run goes on with it."""
        if not self.training or not self.kl_warmup_epochs or self._trainer is None:
            return 1.0
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return min(1.0, self.steps_seen / (self.kl_warmup_epochs * steps))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.kl_warmup_epochs and not math.isfinite(self.trainer.num_training_batches):
            raise ValueError(
                f"kl_warmup_epochs must be 0 for data of unknown length, got {self.kl_warmup_epochs!r}; "
                "or say with the trainer's limit_train_batches how many batches are an epoch"
            )

    @torch.no_grad()
    def _iwae(self, x: Tensor, key: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        weights = []
        for first in range(0, self.iwae_samples, AT_ONCE):
            shape = (min(AT_ONCE, self.iwae_samples - first), self.latent_dim)
            noise = normal(key, f"vae/iwae/{first}", shape).to(mean.dtype).transpose(0, 1)  # (k, B, Z)
            z = mean + noise * torch.exp(log_variance / 2)
            output = self._decoded(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            weights.append(log_importance_weight(self._log_likelihood(output, x), z, mean, log_variance))
        return iwae_bound(torch.cat(weights))


def _bounded(log_variance: Tensor) -> Tensor:
    return BOUND * torch.tanh(log_variance / BOUND)


def _thresholded(x: Tensor) -> Tensor:
    return (x > 0.5).to(x.dtype)
