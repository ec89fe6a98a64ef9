"""Fusion's loss against plain loops over views, images and patches, and on two ranks against one."""

import math

import pytest
import torch
from ranks import run_ranks
from small_fusion import BACKBONES, WEIGHTS, batch_for, fusion

from lit_ssl import ImageSpec
from lit_ssl.losses import nt_xent
from lit_ssl.networks import encode_masked
from lit_ssl.random import integers, normal, uniform
from lit_ssl.views import SingleView


def reference(method, batch):
    """CAN's loss of one batch, view by view and image by image, in plain loops."""
    views = batch["views"] if len(batch["views"]) == 2 else batch["views"] * 2
    grid, (height, width) = method.grid, method.grid.patch
    codes, squares, noise_squares = [], [], []
    for view, images in enumerate(views):
        for image, key in zip(images, batch["key"].split(1), strict=True):
            key = integers(key, f"fusion/view/{view}", 2**53)
            x = (image - method.pixel_mean) / method.pixel_std
            order = uniform(key, "mask", (grid.tokens,)).argsort(1)
            keep = order[:, : math.floor(grid.tokens * (1 - method.mask_ratio))]
            e, level = normal(key, "noise", tuple(x.shape))[0].to(x), uniform(key, "noise/level").to(x)
            sigma = level * method.noise_max
            noisy = x + sigma * e if method.weights["denoising"] else x
            encoded = encode_masked(method.backbone, noisy[None], keep, grid, fill=method.mask_fill, key=key)
            codes.append(encoded.pooled)
            if not hasattr(method, "decoder"):
                continue
            embedded = method.noise_embedding(level) if method.weights["denoising"] else None
            out = method.decoder(encoded, keep, embedded)[0]
            channels = len(image) * sum(method.weights[t] > 0 for t in ("reconstruction", "denoising"))
            for place in range(grid.tokens):
                top, left = place // grid.columns * height, place % grid.columns * width
                pixels = x[:, top : top + height, left : left + width]
                if method.norm_pix and height * width > 1:
                    pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                predicted = out[place].view(height, width, channels).movedim(2, 0)
                hidden = place not in keep[0]
                if method.weights["reconstruction"] and (hidden or method.reconstruct_visible):
                    squares.append((predicted[: len(image)] - pixels).square().mean())
                if method.weights["denoising"] and not hidden:
                    target = e[:, top : top + height, left : left + width]
                    target = target if method.noise_target == "unit" else target * sigma
                    noise_squares.append((predicted[-len(image) :] - target).square().mean())
    terms = {}
    if method.weights["contrastive"]:
        z1, z2 = method.projector(torch.cat(codes)).chunk(2)
        terms["contrastive"] = nt_xent(z1, z2, **method.contrast)
    if squares:
        terms["reconstruction"] = torch.stack(squares).mean()
    if noise_squares:
        terms["denoising"] = torch.stack(noise_squares).mean()
    return {"loss": sum(method.weights[name] * value for name, value in terms.items()), **terms}


# The objective


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_its_loss_is_the_formula_term_by_term(backbone, weights, images):
    method = fusion(backbone, weights).double().eval()
    batch = batch_for(method, images[:5])
    ours, theirs = method.loss(batch), reference(method, batch)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "options",
    [
        {"norm_pix": False, "reconstruct_visible": True, "noise_target": "scaled"},
        {"views": SingleView(), "mask_ratio": 0.75, "mask_fill": "noise"},
        {"beta": 1.0, "tau_plus": 0.1, "temperature": 0.3, "mask_fill": "zero"},
        {"decoupled": True, "chunk_size": 3, "noise_max": 2.0, "mask_patch": 2},
    ],
)
def test_every_option_reaches_the_formula(options, images):
    method = fusion("mlp", **options).double().eval()
    batch = batch_for(method, images[:5])
    ours, theirs = method.loss(batch), reference(method, batch)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_channels_and_sides_may_differ():
    spec = ImageSpec((16, 24), 3)
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for backbone in BACKBONES:
        method = fusion(backbone, spec=spec).double().eval()
        batch = batch_for(method, images)
        torch.testing.assert_close(method.loss(batch)["loss"], reference(method, batch)["loss"], rtol=1e-9, atol=0)
        assert method.reconstruct(images, batch["key"])["output"].shape == images.shape


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_is_weighted_learns_and_nothing_else_is_built(backbone, weights, images):
    method = fusion(backbone, weights)
    assert hasattr(method, "projector") == (weights[0] > 0)
    assert hasattr(method, "decoder") == (weights[1] + weights[2] > 0)
    assert hasattr(method, "noise_embedding") == (weights[2] > 0)
    method.loss(batch_for(method, images[:8]))["loss"].backward()
    trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values()), {
        name for name, grad in trained.items() if grad is None or not grad.abs().sum()
    }


def test_a_term_of_weight_zero_leaves_what_is_left_alone(images):
    """Masked modelling alone and contrast alone, each with the weights of the fusion's networks."""
    both = fusion("vit", (0.5, 2.0, 0)).eval()
    masked, contrast = fusion("vit", (0, 2.0, 0)).eval(), fusion("vit", (0.5, 0, 0)).eval()
    masked.load_state_dict(both.state_dict(), strict=False)
    contrast.load_state_dict(both.state_dict(), strict=False)
    batch = batch_for(both, images[:8])
    whole, left, right = both.loss(batch), masked.loss(batch), contrast.loss(batch)
    assert left.keys() == {"loss", "reconstruction"}
    assert right.keys() == {"loss", "contrastive"}
    assert torch.equal(left["loss"], 2.0 * whole["reconstruction"])
    assert torch.equal(right["loss"], 0.5 * whole["contrastive"])
    torch.testing.assert_close(left["loss"] + right["loss"], whole["loss"])


# Two ranks of unequal shards average to the single process


SHARDS = (3, 5)


def gradients(method, batch):
    losses = method.loss(batch)
    method.zero_grad()
    losses["loss"].backward()
    values = {f"loss/{name}": value.detach() for name, value in losses.items()}
    return {**values, **{name: p.grad.clone() for name, p in method.named_parameters() if p.requires_grad}}


def rows():
    return torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rank_gradients(rank, world):
    mine = slice(sum(SHARDS[:rank]), sum(SHARDS[: rank + 1]))
    out = {}
    for backbone in ("vit", "convnet"):
        method = fusion(backbone).double()
        out[backbone] = gradients(method, batch_for(method, rows(), mine))
    import lit_ssl.losses.reconstruction as module

    module.all_reduce_sum, module.world_size = lambda x: x, lambda: 1  # a mean over the rank's own patches
    method = fusion("vit").double()
    out["wrong"] = gradients(method, batch_for(method, rows(), mine))
    return out


def test_ranks_average_to_the_single_process():
    ranks = run_ranks(rank_gradients, 2)
    for backbone in ("vit", "convnet"):
        method = fusion(backbone).double()
        expected = gradients(method, batch_for(method, rows()))
        for name, value in expected.items():
            mean = torch.stack([r[backbone][name] for r in ranks]).mean(0)
            torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    wrong = torch.stack([r["wrong"]["loss/reconstruction"] for r in ranks]).mean(0)
    right = torch.stack([r["vit"]["loss/reconstruction"] for r in ranks]).mean(0)
    assert (wrong - right).abs() > 1e-4


def test_a_rank_without_rows_adds_nothing(images):
    method = fusion("mlp").eval()
    losses = method.loss(batch_for(method, images, slice(0)))
    assert all(value == 0 for value in losses.values())
