"""Fixed positions and a frozen patch embedding, as MoCo v3 and FLIP have them."""

import pytest
import torch

from lit_ssl import MoCo
from lit_ssl.networks import build_backbone
from lit_ssl.networks.masked import sincos_table
from lit_ssl.spec import ImageSpec

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def vit(**options):
    return build_backbone("vit_tiny_patch16_224", ImageSpec(16), options={**TINY, **options})


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}])
def test_fixed_positions_are_sines_and_cosines_that_do_not_learn(options):
    backbone = vit(fixed_positions=True, **options)
    prefix = backbone.num_prefix_tokens
    assert not backbone.pos_embed.requires_grad
    assert torch.equal(backbone.pos_embed[0, prefix:], sincos_table(4, 4, 16))
    assert (backbone.pos_embed[:, :prefix] == 0).all()
    assert vit(**options).pos_embed.requires_grad


def test_a_frozen_patch_embedding_starts_xavier_uniform():
    projection = vit(frozen_patch_embedding=True).patch_embed.proj
    assert not any(parameter.requires_grad for parameter in projection.parameters())
    bound = (6 / (3 * 4 * 4 + 16)) ** 0.5  # as in vits.py of the authors of MoCo v3
    assert 0.9 * bound < projection.weight.abs().max() <= bound
    assert (projection.bias == 0).all()


def test_the_rest_of_such_a_vit_learns_and_its_copy_follows(images, loader, make_trainer):
    options = {**TINY, "weight_init": "moco", "fixed_positions": True, "frozen_patch_embedding": True}
    method = MoCo(
        spec=ImageSpec(16, images.shape[1]), backbone="vit_tiny_patch16_224", backbone_options=options, queue_size=0,
        predictor=True, symmetric=True, projector_hidden=16, projector_dim=8, momentum=0.5, optimizer="adamw", lr=0.01,
    )  # fmt: skip
    method.configure_model()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    make_trainer(max_epochs=1).fit(method, loader)
    frozen = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    moved = {name for name, value in method.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - frozen
    key = method.key_backbone.state_dict()
    assert {name for name in key if not torch.equal(key[name], before[name])} == moved


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10t", {"fixed_positions": True}, "fixed_positions=True works for timm's VisionTransformer, not for"),
        ("resnet10t", {"frozen_patch_embedding": True}, "frozen_patch_embedding=True works for timm's VisionTransf"),
        ("vit_tiny_patch16_224", {"fixed_positions": 1}, "fixed_positions must be true or false, got 1"),
        (
            "vit_tiny_patch16_224",
            {"fixed_positions": True, "pos_embed": "none"},
            "does not go with a ViT without position embedding",
        ),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, ImageSpec(32), options=options)


def test_pretrained_weights_keep_their_positions(monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    with pytest.raises(ValueError, match="fixed_positions=True does not go with pretrained=True"):
        build_backbone("vit_tiny_patch16_224", ImageSpec(32), pretrained=True, options={"fixed_positions": True})
