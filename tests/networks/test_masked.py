"""Encoding what a mask leaves: what is hidden has no influence, what is seen is encoded as by the backbone itself."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lit_ssl.networks import (
    build_backbone,
    encode_masked,
    initialize_vit,
    is_vit,
    mask_of,
    patch_grid,
    random_keep,
    sincos_positions,
)
from lit_ssl.networks.masked import sincos_table
from lit_ssl.random import sample_key
from lit_ssl.spec import ImageSpec

VIT = "vit_small_patch16_224"
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}
SPEC = ImageSpec((16, 24), 2)  # as patches of 4: 4 rows of 6


def vit(name=VIT, spec=SPEC, **options):
    torch.manual_seed(0)
    backbone = build_backbone(name, spec, options={**SMALL, "patch_size": 4, **options})
    initialize_vit(backbone)
    return backbone


def images(rows=3, spec=SPEC):
    return torch.randn(rows, spec.channels, *spec.size, generator=torch.Generator().manual_seed(1))


def keys(rows=3):
    return sample_key(0, 0, torch.arange(rows))


# Which networks drop tokens


def test_timms_vits_drop_tokens():
    assert is_vit(vit())
    assert is_vit(build_backbone("deit_tiny_distilled_patch16_224", ImageSpec(32), options=SMALL))


class OwnForward(VisionTransformer):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x) * 2


def test_whatever_dropping_would_not_follow_is_no_vit():
    assert not is_vit(build_backbone("convnet", SPEC))
    assert not is_vit(build_backbone("mlp", SPEC))
    assert not is_vit(OwnForward(img_size=32, patch_size=8, num_classes=0, **SMALL))
    # A hybrid's patches come out of a ResNet that has seen the whole image.
    hybrid = build_backbone("vit_tiny_r_s16_p8_224", ImageSpec(32), options=SMALL)
    assert isinstance(hybrid, VisionTransformer)
    assert not is_vit(hybrid)


def test_the_patches_that_masks_are_made_of():
    spec = ImageSpec((28, 56), 3)
    assert patch_grid(build_backbone(VIT, spec, options=SMALL), spec).patch == (4, 4)
    assert patch_grid(vit(patch_size=(2, 8)), SPEC).patch == (2, 8)
    assert patch_grid(vit(), SPEC, 4).patch == (4, 4)
    assert patch_grid(build_backbone("mlp", spec), spec).patch == (1, 1)
    assert patch_grid(build_backbone("convnet", spec), spec).patch == (4, 4)
    assert patch_grid(build_backbone("convnet", spec), spec, 7).tokens == 4 * 8


@pytest.mark.parametrize(
    ("name", "mask_patch", "message"),
    [
        (VIT, 8, r"mask_patch must be None for this ViT of 4x4 patches, got 8"),
        ("convnet", 5, r"mask_patch must divide the image of 16x24 pixels, got 5"),
        ("mlp", 0, r"mask_patch must be an integer of at least 1 or None, got 0"),
    ],
)
def test_a_bad_mask_patch_is_named(name, mask_patch, message):
    backbone = vit() if name == VIT else build_backbone(name, SPEC)
    with pytest.raises(ValueError, match=message):
        patch_grid(backbone, SPEC, mask_patch)


# ViT: visible tokens only

FAMILY = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "avg_without_cls": {"global_pool": "avg", "class_token": False},
    "avg_norm_first": {"global_pool": "avg", "fc_norm": False},
    "avgmax": {"global_pool": "avgmax"},
    "map": {"global_pool": "map"},
    "registers": {"reg_tokens": 3},
    "registers_apart": {"reg_tokens": 2, "no_embed_class": True},
    "pre_norm": {"pre_norm": True},
    "layer_scale": {"init_values": 0.1},
    "no_final_norm": {"final_norm": False},
    "no_positions": {"pos_embed": "none"},
    "dynamic_size": {"dynamic_img_size": True},
    "oblong_patches": {"patch_size": (2, 8)},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
}


@pytest.mark.parametrize("options", FAMILY.values(), ids=FAMILY)
def test_with_every_token_kept_it_is_the_backbone_itself(options):
    backbone = vit(**options).eval()
    grid, x = patch_grid(backbone, SPEC), images()
    everything = torch.arange(grid.tokens).expand(3, -1)
    encoded = encode_masked(backbone, x, everything, grid)
    torch.testing.assert_close(encoded.pooled, backbone(x), rtol=1e-5, atol=1e-6)
    assert encoded.tokens.shape == (3, backbone.num_prefix_tokens + grid.tokens, 16)
    shuffled = random_keep(keys(), "order", grid.tokens, grid.tokens)  # a token's place is in the token
    torch.testing.assert_close(encode_masked(backbone, x, shuffled, grid).pooled, backbone(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", FAMILY.values(), ids=FAMILY)
def test_a_vit_sees_the_visible_pixels_and_no_other(options):
    backbone = vit(**options).eval()
    grid, x = patch_grid(backbone, SPEC), images()
    keep = random_keep(keys(), "mask", grid.tokens, 5)
    hidden = grid.pixels(mask_of(keep, grid.tokens))
    encoded = encode_masked(backbone, x, keep, grid)
    assert encoded.tokens.shape[1] == backbone.num_prefix_tokens + 5
    elsewhere = encode_masked(backbone, torch.where(hidden, 100.0, x), keep, grid)
    assert torch.equal(encoded.pooled, elsewhere.pooled)
    assert torch.equal(encoded.tokens, elsewhere.tokens)
    seen = encode_masked(backbone, torch.where(hidden, x, x + 1 + x.square()), keep, grid)
    assert (encoded.pooled != seen.pooled).any(1).all()


def test_stacked_views_are_the_views_one_by_one():
    for backbone, visible in ((vit().eval(), 5), (build_backbone("convnet", SPEC).eval(), 5)):
        grid, x = patch_grid(backbone, SPEC), images()
        keeps = [random_keep(keys(), name, grid.tokens, visible) for name in ("a", "b")]
        stacked = encode_masked(backbone, x, torch.cat(keeps), grid)
        alone = torch.cat([encode_masked(backbone, x, keep, grid).pooled for keep in keeps])
        torch.testing.assert_close(stacked.pooled, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}])
def test_tokens_are_normalised_whatever_the_pooling(options):
    backbone, keep = vit(**options), random_keep(keys(), "mask", 24, 6)
    tokens = encode_masked(backbone, images() * 9, keep, patch_grid(backbone, SPEC)).tokens
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(3, 7), atol=1e-3, rtol=0)


def test_gradient_checkpointing_recomputes_and_changes_no_gradient():
    gradients, forwards = [], []
    for checkpointed in (False, True):
        backbone = vit()
        backbone.set_grad_checkpointing(checkpointed)
        count = []
        backbone.blocks[0].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        encoded = encode_masked(backbone, images(), random_keep(keys(), "m", 24, 6), patch_grid(backbone, SPEC))
        encoded.pooled.square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
        forwards.append(len(count))
    assert forwards == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# Any other network: filled pixels


class Seen(nn.Module):
    """A backbone whose features are its input."""

    num_features = SPEC.channels * SPEC.height * SPEC.width

    def forward(self, x):
        return x.flatten(1)


def filled(x, keep, fill, **kwargs):
    grid = patch_grid(Seen(), SPEC, 4)
    out = encode_masked(Seen(), x, keep, grid, fill=fill, **kwargs).pooled.view(-1, *x.shape[1:])
    return out, grid.pixels(mask_of(keep, grid.tokens)).expand_as(out)


@pytest.mark.parametrize("fill", ["mean", "zero", "noise"])
def test_fillings_look_at_visible_pixels_alone(fill):
    x, keep = images(), random_keep(keys(), "mask", 24, 6)
    out, hidden = filled(x, keep, fill, key=keys())
    assert torch.equal(out[~hidden], x[~hidden])
    elsewhere, _ = filled(torch.where(hidden, 100.0, x), keep, fill, key=keys())
    assert torch.equal(out, elsewhere)
    if fill == "zero":
        assert (out[hidden] == 0).all()
    for row, channel in [(0, 0), (2, 1)] if fill != "zero" else []:
        seen, unseen = x[row, channel][~hidden[row, channel]], out[row, channel][hidden[row, channel]]
        if fill == "mean":
            torch.testing.assert_close(unseen, seen.mean().expand_as(unseen))
        else:  # 288 draws
            assert abs(unseen.mean() - seen.mean()) < 4 * seen.std() / math.sqrt(288)
            assert unseen.std().item() == pytest.approx(seen.std().item(), rel=0.2)


def test_noise_is_a_function_of_the_key():
    x, keep = images(), random_keep(keys(), "mask", 24, 6)
    out, hidden = filled(x, keep, "noise", key=keys())
    alone, _ = filled(x[1:2], keep[1:2], "noise", key=keys()[1:2])
    assert torch.equal(out[1:2], alone)
    other, _ = filled(x, keep, "noise", key=keys() + 1)
    assert (out != other)[hidden].all()
    two, _ = filled(x, keep.repeat(2, 1), "noise", key=keys())  # each view has its own
    assert (two[:3] != two[3:])[hidden].all()


@pytest.mark.parametrize("fill", ["mean", "zero", "noise"])
@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet10t"])
def test_other_networks_see_the_visible_pixels_and_no_other(name, fill):
    backbone = build_backbone(name, SPEC).eval()
    grid, x = patch_grid(backbone, SPEC, 4), images()
    keep = random_keep(keys(), "mask", grid.tokens, 6)
    hidden = grid.pixels(mask_of(keep, grid.tokens))
    code = encode_masked(backbone, x, keep, grid, fill=fill, key=keys())
    assert code.tokens is None
    elsewhere = encode_masked(backbone, torch.where(hidden, 100.0, x), keep, grid, fill=fill, key=keys())
    assert torch.equal(code.pooled, elsewhere.pooled)
    seen = encode_masked(backbone, torch.where(hidden, x, x + 1), keep, grid, fill=fill, key=keys())
    assert (code.pooled != seen.pooled).any(1).all()


def test_an_image_without_visible_pixels_is_finite():
    out, hidden = filled(images(), torch.empty(3, 0, dtype=torch.int64), "noise", key=keys())
    assert hidden.all()
    assert (out == 0).all()


# First weights


def test_positions_are_the_papers_sines_and_cosines():
    table = sincos_table(3, 5, 16).view(3, 5, 16)
    for row in range(3):
        for column in range(5):
            angles = [[place / 10000 ** (i / 4) for i in range(4)] for place in (column, row)]
            expected = [f(a) for place in angles for f in (math.sin, math.cos) for a in place]
            torch.testing.assert_close(table[row, column], torch.tensor(expected))
    assert len({tuple(row) for row in table.flatten(0, 1).tolist()}) == 15
    with pytest.raises(ValueError, match=r"multiple of 4, got 10"):
        sincos_table(3, 5, 10)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, 1), ({"reg_tokens": 2}, 3), ({"reg_tokens": 2, "no_embed_class": True}, 0), ({"dynamic_img_size": True}, 1)],
)
def test_positions_are_fixed_and_prefix_tokens_have_none(options, prefix):
    backbone = build_backbone(VIT, SPEC, options={**SMALL, "patch_size": 4, **options})
    sincos_positions(backbone)
    assert not backbone.pos_embed.requires_grad
    assert (backbone.pos_embed[0, :prefix] == 0).all()
    assert torch.equal(backbone.pos_embed[0, prefix:], sincos_table(4, 6, 16))


def test_a_vit_without_positions_stays_without():
    sincos_positions(backbone := vit(pos_embed="none"))
    assert backbone.pos_embed is None


def test_first_weights_are_xaviers():
    torch.manual_seed(0)
    backbone = build_backbone(VIT, SPEC, options={**SMALL, "embed_dim": 96, "reg_tokens": 8, "patch_size": 4})
    initialize_vit(backbone)
    weights = [m.weight for m in backbone.modules() if isinstance(m, nn.Linear)]
    weights.append(backbone.patch_embed.proj.weight.flatten(1))
    for weight in weights:
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.95 * bound < weight.abs().max() <= bound
    assert all((m.bias == 0).all() for m in backbone.modules() if isinstance(m, nn.Linear))
    for token in (backbone.cls_token, backbone.reg_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_class_token_is_among_what_is_averaged_if_asked_for(prefix):
    backbone = vit(global_pool="avg", pool_include_prefix=prefix).eval()
    grid = patch_grid(backbone, SPEC)
    keep = torch.arange(grid.tokens).expand(3, -1)
    tokens = backbone.forward_features(images())
    expected = backbone.fc_norm(tokens[:, 0 if prefix else 1 :].mean(1))
    torch.testing.assert_close(encode_masked(backbone, images(), keep, grid).pooled, expected)
    torch.testing.assert_close(backbone(images()), expected)
