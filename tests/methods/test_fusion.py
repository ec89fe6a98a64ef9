"""Fusion: pitfalls of public implementations, draws, interfaces and arguments."""

import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from small_fusion import BACKBONES, WEIGHTS, batch_for, fusion
from torch.nn import functional as F

from lit_ssl import Fusion, ImageSpec, SSLModule
from lit_ssl.datamodules import Quickstart
from lit_ssl.evaluation import knn
from lit_ssl.views import SimCLRViews, SingleView

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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_through_a_sigmoid_pixels_stay_between_0_and_1(backbone, images):
    """Whatever the decoder says: here, numbers so large that it can only say black or white."""
    method = fusion(backbone, norm_pix=False, sigmoid_output=True, spec=ImageSpec(16, 1, (0.3,), (0.2,)))
    method.decoder.register_forward_hook(lambda _, __, out: 1000 * out)
    batch = batch_for(method, images[:8])
    x = method.normalize(torch.cat(batch["views"]))
    bound = torch.maximum((x - (0 - 0.3) / 0.2).abs(), (x - (1 - 0.3) / 0.2).abs()).square().max()
    assert 0 < method.loss(batch)["reconstruction"] <= bound
    columns = method.reconstruct(images[:8], torch.arange(8))
    painted = columns["output"][columns["masked"] != columns["input"]]
    assert ((painted < 1e-3) | (painted > 1 - 1e-3)).float().mean() > 0.9


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
    method = fusion("mlp", spec=data.spec, views=SingleView(), mask_patch=4, lr=1e-2, warmup_epochs=0)
    make_trainer(limit_train_batches=40, limit_val_batches=0).fit(method, data)
    seen, held_out = data.train_set, data.val_set
    images, labels = seen.images[:2000], seen.labels[:2000]

    def score(encoder):
        return knn(encoder.represent(images), labels, encoder.represent(held_out.images), held_out.labels)

    assert score(method) > score(method.untrained()) + 0.02


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
        ("sigmoid_output", 1),
        ("decoder", "unet"),
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


def test_normalised_patches_go_through_no_sigmoid():
    with pytest.raises(ValueError, match="sigmoid_output needs norm_pix=False"):
        Fusion(sigmoid_output=True)


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
