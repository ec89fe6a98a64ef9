import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from ranks import run_ranks
from torch.nn import functional as F

from lit_ssl import Fusion, ImageSpec, SSLModule
from lit_ssl.datamodules import Quickstart
from lit_ssl.evaluation import knn
from lit_ssl.losses import nt_xent
from lit_ssl.networks import encode_masked
from lit_ssl.random import integers, normal, uniform
from lit_ssl.views import SimCLRViews, SingleView, with_keys, with_views

BACKBONES = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_options": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4},
        "decoder_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "convnet": {
        "backbone": "convnet",
        "backbone_options": {"width": 8, "stages": 2},
        "decoder_width": 8,
        "mask_patch": 4,
    },
    "mlp": {"backbone": "mlp", "backbone_options": {"hidden": (32, 16)}, "decoder_hidden": (24,)},
}
WEIGHTS = [(0.03, 0.679, 0.291), (0.5, 1, 0), (0.5, 0, 0.2), (0, 1, 0.2), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


def fusion(backbone="mlp", weights=(0.03, 0.679, 0.291), spec=None, **kwargs):
    names = ("contrastive_weight", "reconstruction_weight", "denoising_weight")
    arguments = {"projector_hidden": 16, "projector_dim": 8, **dict(zip(names, weights, strict=True))}
    method = Fusion(spec=spec or ImageSpec(16, 1), seed=0, **{**arguments, **BACKBONES[backbone], **kwargs})
    method.configure_model()
    return method


def batch_for(method, images, rows=slice(None)):
    index = torch.arange(len(images))[rows]
    batch = {"image": images[rows], "index": index, "label": torch.full((len(index),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


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


# Pitfalls of public implementations


def test_the_target_is_the_clean_image_and_views_are_left_alone(images):
    """Noise added in place would make the noisy image the target."""
    method = fusion("mlp", noise_max=3.0, norm_pix=False).eval()
    batch = batch_for(method, images[:16])
    before = [view.clone() for view in batch["views"]]
    seen = {}
    method.backbone.register_forward_hook(lambda _, inputs, __: seen.update(x=inputs[0]))
    method.decoder.register_forward_hook(lambda _, __, out: seen.update(out=out))
    term = method.loss(batch)["reconstruction"]
    assert all(torch.equal(a, b) for a, b in zip(before, batch["views"], strict=True))
    x = method.normalize(torch.cat(before))
    hidden = torch.ones(32, 256, dtype=torch.bool)
    hidden.scatter_(1, method.visible_patches(method.view_keys(batch["key"])), False)
    noise = (seen["x"] - x).flatten(1)[~hidden]
    assert noise.square().mean() == pytest.approx(3.0**2 / 3, rel=0.25)  # what the encoder saw was noisy
    predicted = seen["out"].view(32, 256, 2)[..., 0]
    torch.testing.assert_close(term, (predicted - x.flatten(1))[hidden].square().mean())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_optimizer_moves_every_network(weights, spec, loader, make_trainer):
    """A projector left out of the optimizer would never train."""
    method = fusion("mlp", weights, lr=0.01, warmup_epochs=0)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    make_trainer(max_steps=1, max_epochs=-1).fit(method, loader)
    held = {id(p) for group in method.trainer.optimizers[0].param_groups for p in group["params"]}
    for name, p in method.named_parameters():
        assert id(p) in held
        assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize(("target", "scale"), [("unit", 1.0), ("scaled", 0.05**2 / 3)])
def test_the_noise_term_has_the_scale_of_its_target(target, scale, images):
    """A decoder that says nothing misses the paper's target by 0.0008, which no other term would notice; ours by 1."""
    method = fusion("mlp", noise_target=target)
    for p in method.decoder.network.layers[-1].parameters():
        p.data.zero_()
    losses = method.loss(batch_for(method, images))
    assert losses["denoising"].item() == pytest.approx(scale, rel=0.15)
    share = 0.291 * losses["denoising"] / losses["loss"]
    assert share > 0.2 if target == "unit" else share < 0.005


def test_the_decoder_can_tell_levels_of_noise_apart():
    """Sines of sigma itself, at most 0.05, would be all alike."""
    method = fusion("mlp")
    embedded = method.noise_embedding(torch.linspace(0, 1, 11))
    distances = torch.cdist(embedded, embedded) + 10 * torch.eye(11)
    assert distances.min() > 0.1 * embedded.norm(dim=1).mean()


# Draws


def test_draws_belong_to_the_image_and_view_alone(images):
    method = fusion("mlp", mask_fill="noise").eval()
    seen = []
    method.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    method.loss(batch_for(method, images[:8]))
    method.loss(batch_for(method, images[:8], torch.tensor([5, 2])))
    torch.testing.assert_close(seen[1], seen[0][[5, 2, 13, 10]])


def test_the_two_views_of_an_image_share_no_draw(images):
    """The same mask, noise or fill in both would tell that they belong together."""
    method = fusion("mlp", (1, 0, 0.1), views=SingleView(), mask_fill="noise", noise_max=1.0)
    seen = []
    method.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(1)))
    batch = batch_for(method, torch.full_like(images, 128))
    method.loss(batch)
    first, second = seen[0].chunk(2)
    keep = method.visible_patches(method.view_keys(batch["key"]))
    visible = torch.zeros(128, 256).scatter(1, keep, 1.0)
    assert visible.sum(1).eq(128).all()
    one, two = visible.chunk(2)
    assert (one * two).sum(1).mean() == pytest.approx(64, rel=0.05)  # half of what one shows is shown by the other
    centred = [x - x.mean(1, keepdim=True) for x in (first, second)]
    same = F.cosine_similarity(*centred).abs().mean()
    other = F.cosine_similarity(centred[0], centred[1].roll(1, 0)).abs().mean()
    assert same < 0.12
    assert same == pytest.approx(other.item(), abs=0.03)


def test_validation_draws_the_same_each_time(images, loader, make_trainer):
    method = fusion("mlp")
    first, second = (make_trainer().validate(method, loader, verbose=False) for _ in range(2))
    assert first == second
    assert {"val/loss", "val/contrastive", "val/reconstruction", "val/denoising"} <= first[0].keys()


# Interfaces


@pytest.mark.parametrize("backbone", BACKBONES)
def test_embeddings_are_of_whole_images_without_noise(backbone, images):
    method = fusion(backbone)
    clean = images.float() / 255
    with torch.no_grad():
        expected = method.eval().backbone(method.normalize(clean))
        assert torch.equal(method.embed(clean), expected)
    assert torch.equal(method.train().represent(images), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("visible", [True, False])
def test_reconstructions_are_pictures(backbone, visible, images):
    method = fusion(backbone, reconstruct_visible=visible).train()
    key = torch.arange(8)
    columns = method.reconstruct(images[:8], key)
    assert list(columns) == ["input", "masked", "output"]
    assert all(c.shape == (8, 1, 16, 16) and c.min() >= 0 and c.max() <= 1 for c in columns.values())
    assert method.training
    hidden = columns["masked"] != columns["input"]
    assert 0.4 < hidden.float().mean() < 0.6
    assert torch.equal(columns["output"][~hidden], columns["input"][~hidden]) != visible
    alone = method.reconstruct(images[3:4], key[3:4])
    torch.testing.assert_close(alone["output"], columns["output"][3:4])


def test_without_reconstruction_there_is_none_to_show(images):
    with pytest.raises(MisconfigurationException, match="reconstruction_weight is 0"):
        fusion("mlp", (1, 0, 1)).reconstruct(images, torch.arange(64))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_fits_a_plain_loader_in_any_precision(backbone, precision, loader, make_trainer):
    method = fusion(backbone)
    trainer = make_trainer(precision=precision)
    trainer.fit(method, loader)
    metrics = trainer.callback_metrics
    assert all(metrics[f"train/{term}"].isfinite() for term in ("loss", *method.weights))


def test_it_comes_back_from_a_checkpoint(images, loader, make_trainer, tmp_path):
    method = fusion("vit", views=SimCLRViews(scale=(0.5, 1.0)))
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "fusion.ckpt")
    again = Fusion.load_from_checkpoint(tmp_path / "fusion.ckpt")
    assert isinstance(again, SSLModule)
    assert torch.equal(again.represent(images), method.represent(images))
    assert again.views == method.views
    assert torch.equal(
        again.reconstruct(images, torch.arange(64))["output"], method.reconstruct(images, torch.arange(64))["output"]
    )


def test_a_short_run_beats_its_first_weights(make_trainer):
    data = Quickstart(batch_size=128)
    method = fusion("mlp", spec=data.spec, views=SingleView(), mask_patch=4, lr=5e-3, warmup_epochs=0)
    make_trainer(max_epochs=2, limit_val_batches=0).fit(method, data)
    seen, held_out = data.train_set, data.val_set

    def score(encoder):
        return knn(encoder.represent(seen.images), seen.labels, encoder.represent(held_out.images), held_out.labels)

    assert score(method) > score(method.untrained()) + 0.02


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


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contrastive_weight", -0.1),
        ("reconstruction_weight", math.nan),
        ("denoising_weight", "1"),
        ("mask_ratio", 1),
        ("mask_ratio", 0.0),
        ("noise_max", 0),
        ("noise_target", "none"),
        ("norm_pix", 1),
        ("reconstruct_visible", None),
        ("temperature", 0),
        ("beta", -1.0),
        ("tau_plus", 1.0),
        ("chunk_size", 0),
        ("projector_layers", 0),
        ("projector_hidden", 1.5),
        ("projector_dim", -8),
        ("decoder_dim", 30),
        ("decoder_width", 12),
        ("mask_patch", 0),
        ("mask_fill", "black"),
    ],
)
def test_a_bad_argument_is_named_at_construction(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Fusion(**{name: value})


def test_something_must_have_a_weight():
    with pytest.raises(ValueError, match="one of contrastive_weight, reconstruction_weight, denoising_weight must"):
        Fusion(contrastive_weight=0, reconstruction_weight=0, denoising_weight=0)


def test_a_pooling_that_would_not_learn_is_refused():
    pooled = {"backbone_options": {"patch_size": 4, "global_pool": "map", "class_token": False}}
    with pytest.raises(ValueError, match="attn_pool would get no gradient"):
        fusion("vit", (0, 1, 0), **pooled)


def test_three_views_are_one_too_many(loader, make_trainer):
    method = fusion("mlp", views=lambda image, key, spec, dtype: [torch.zeros(len(image), 1, 16, 16)] * 3)
    with pytest.raises(ValueError, match="views of Fusion must make 1 to 2 views an image, got 3"):
        make_trainer().fit(method, loader)
