"""MAE: gradients, targets, pictures, ranks and arguments."""

import pytest
import timm
import torch
import torch.nn.functional as F
from ranks import run_ranks
from small_mae import VIT, batch_for, keys, mae, pictures

from lit_ssl import MAE, ImageSpec
from lit_ssl.networks import mask_of
from lit_ssl.views import MAEViews

# Gradients and the optimizer

NETWORKS = [
    ("vit_small_patch16_224", {}),
    ("vit_small_patch16_224", {"global_pool": "avg"}),
    ("vit_small_patch16_224", {"global_pool": "avg", "class_token": False, "reg_tokens": 2}),
    ("vit_small_patch16_224", {"global_pool": "max", "no_embed_class": True}),
    ("vit_small_patch16_224", {"pre_norm": True, "qk_norm": True, "init_values": 0.1, "dynamic_img_size": True}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("convnet", {}),
    ("mlp", {}),
]


@pytest.mark.parametrize(("backbone", "options"), NETWORKS)
@pytest.mark.parametrize("spec", [ImageSpec((16, 24), 1), ImageSpec((16, 8), 4)], ids=["gray", "four_channels"])
def test_gradient_reaches_every_trainable_parameter(backbone, options, spec):
    method = mae(spec, backbone, options)
    loss = method.loss(batch_for(method, pictures(6, spec)))["loss"]
    loss.backward()
    assert loss.isfinite()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


@pytest.mark.parametrize(
    ("options", "named"), [({"global_pool": "map"}, "attn_pool"), ({"num_classes": 16}, "head")], ids=["pool", "head"]
)
def test_what_would_get_no_gradient_is_refused(options, named):
    own = timm.create_model("vit_small_patch16_224", img_size=32, **{"num_classes": 0, **VIT, **options})
    method = MAE(spec=ImageSpec(32), backbone=own)
    with pytest.raises(ValueError, match=rf"the backbone's {named} would get no gradient: .*backbone_options"):
        method.configure_model()


def test_which_parameters_decay(spec, loader, make_trainer):
    method = mae(spec, options={"reg_tokens": 1})
    trainer = make_trainer(max_steps=1, max_epochs=-1)
    trainer.fit(method, loader)
    (optimizer,) = trainer.optimizers
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    for name, parameter in method.named_parameters():
        if name == "backbone.pos_embed":
            assert id(parameter) not in decays
            continue
        exempt = name.endswith(("bias", "cls_token", "mask_token", "reg_token")) or "norm" in name
        assert decays[id(parameter)] == (0.0 if exempt else 0.05), name
    assert id(method.decoder.mask_token) in decays


def test_the_papers_recipe_is_the_default():
    method = MAE()
    assert method.views == MAEViews()
    expected = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05, "options": {"betas": [0.9, 0.95]}}
    assert method.optimizer_arguments == expected
    assert (method.warmup_epochs, method.lr_scaling, method.schedule) == (40, "linear", "cosine")
    assert (method.mask_ratio, method.norm_pix) == (0.75, True)
    assert MAE(optimizer="sgd").optimizer_arguments["options"] is None


def test_gradient_checkpointing_changes_no_gradient(spec, images):
    gradients = []
    for checkpointed in (False, True):
        method = mae(spec, gradient_checkpointing=checkpointed)
        assert method.backbone.grad_checkpointing is checkpointed
        method.loss(batch_for(method, images[:8]))["loss"].backward()
        gradients.append([p.grad for p in method.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# Targets and pictures


def test_single_pixels_are_predicted_as_they_are():
    """norm_pix has nothing to normalise one pixel by."""
    for channels in (1, 3):
        spec = ImageSpec(8, channels)
        plain, normal = (mae(spec, "mlp", norm_pix=norm_pix) for norm_pix in (False, True))
        batch = batch_for(plain, pictures(4, spec))
        assert normal.grid.patch == (1, 1)
        assert torch.equal(plain.loss(batch)["loss"], normal.loss(batch)["loss"])
    squares = [mae(spec, "mlp", norm_pix=norm_pix, mask_patch=2).loss(batch)["loss"] for norm_pix in (False, True)]
    assert squares[0] != squares[1]


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "convnet"])
def test_a_reconstruction_shows_what_is_predicted_in_its_place(backbone, norm_pix):
    spec = ImageSpec((16, 24), 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    method, images, key = mae(spec, backbone, norm_pix=norm_pix), pictures(5, spec), keys(5)
    method.train()
    method.decoder.eval()
    columns = method.reconstruct(images, key)
    assert list(columns) == ["input", "masked", "output"]
    assert all(c.shape == images.shape and c.dtype == torch.float32 for c in columns.values())
    assert method.backbone.training
    assert not method.decoder.training
    assert not columns["output"].requires_grad

    x = images / 255.0
    hidden = method.grid.pixels(mask_of(method.visible_patches(key), method.grid.tokens)).expand_as(x)
    assert torch.equal(columns["input"], x)
    assert (columns["masked"][hidden] == 0.5).all()
    for shown in ("masked", "output"):
        assert torch.equal(columns[shown][~hidden], x[~hidden])
    with torch.no_grad():
        pred = method.eval()._predict(method.normalize(x), method.visible_patches(key), key)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    patches = method.grid.patchify((x - mean) / std)
    if norm_pix:
        pred = pred * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    painted = method.grid.unpatchify(pred) * std + mean
    torch.testing.assert_close(columns["output"][hidden], painted.clamp(0, 1)[hidden])
    assert columns["output"].min() >= 0
    assert columns["output"].max() <= 1


def test_a_reconstruction_is_of_the_clean_view(images):
    method = mae(ImageSpec(8, 1))
    assert torch.equal(method.reconstruct(images, keys(64))["input"], method.clean(images))


# Ranks


def on_rank(rank, world, shards):
    spec = ImageSpec(16, 1)
    method = mae(spec).double()
    images, key = pictures(7, spec) / 255.0, keys(7)
    rows = slice(sum(shards[:rank]), sum(shards[: rank + 1]))
    keep = method.visible_patches(key[rows])
    loss = method.loss({"views": [images[rows].double()], "key": key[rows]})["loss"]
    loss.backward()
    grads = [p.grad for p in method.parameters() if p.requires_grad]
    return {"loss": loss.detach(), "grads": grads, "keep": keep}


def test_two_ranks_average_to_one_process_with_its_masks():
    ranks, single = run_ranks(on_rank, 2, (2, 5)), on_rank(0, 1, (7,))
    assert torch.equal(torch.cat([rank["keep"] for rank in ranks]), single["keep"])
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, single["loss"], rtol=1e-12, atol=0)
    for a, b, expected in zip(ranks[0]["grads"], ranks[1]["grads"], single["grads"], strict=True):
        torch.testing.assert_close((a + b) / 2, expected, rtol=1e-9, atol=1e-13)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 0}, r"mask_ratio must be above 0 and below 1, got 0"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be above 0 and below 1, got 1.0"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be a number from 0 to 1, got 1.5"),
        ({"norm_pix": "yes"}, r"norm_pix must be true or false, got 'yes'"),
        ({"decoder": "unet"}, r"decoder must be one of conv, mlp, got 'unet'"),
        ({"decoder_dim": 30, "decoder_heads": 4}, r"decoder_dim must be a multiple of 4 and of decoder_heads \(4\)"),
        ({"decoder_depth": 0}, r"decoder_depth must be an integer of at least 1, got 0"),
        ({"decoder_heads": 0}, r"decoder_heads must be an integer of at least 1, got 0"),
        ({"decoder_width": 12}, r"decoder_width must be a multiple of 8, got 12"),
        ({"decoder_hidden": 64}, r"decoder_hidden must be a sequence of widths, got 64"),
        ({"mask_patch": 0}, r"mask_patch must be an integer of at least 1 or None, got 0"),
        ({"mask_fill": "blur"}, r"mask_fill must be one of mean, zero, noise, got 'blur'"),
    ],
)
def test_a_bad_argument_is_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAE(**arguments)


def test_an_image_of_one_patch_is_refused():
    with pytest.raises(ValueError, match=r"masking needs at least 2 patches an image, got 1"):
        mae(ImageSpec(16), "convnet", mask_patch=16)


def test_two_views_are_one_too_many(spec, loader, make_trainer):
    method = mae(spec, views=lambda image, key, spec, dtype: [F.interpolate(image / 255.0, spec.size)] * 2)
    with pytest.raises(ValueError, match=r"views of MAE must make 1 views an image, got 2"):
        make_trainer().fit(method, loader)
