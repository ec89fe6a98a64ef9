import math

import pytest
import timm
import torch
import torch.nn.functional as F
from ranks import run_ranks

from lit_ssl import MAE, ImageSpec
from lit_ssl.datamodules import Quickstart
from lit_ssl.losses import masked_mse, normalize_patches
from lit_ssl.networks import encode_masked, mask_of
from lit_ssl.random import sample_key
from lit_ssl.views import MAEViews, SingleView, with_keys, with_views

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "decoder_width": 8, "decoder_hidden": [16]}
OTHERS = {"convnet": {"width": 4, "stages": 2}, "mlp": {"hidden": [32, 16]}}


def mae(spec, backbone="vit_small_patch16_224", options=None, **kwargs):
    options = {**OTHERS.get(backbone, VIT), **(options or {})}
    method = MAE(spec=spec, backbone=backbone, backbone_options=options, **{**DECODER, **kwargs})
    method.configure_model()
    return method


def keys(rows):
    return sample_key(0, 0, torch.arange(rows))


def pictures(rows, spec):
    shape = (rows, spec.channels, *spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch_for(method, images):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


# The authors' loss, from the paper's equations


def layer_norm(x, w, name):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return torch.einsum("nld,ed->nle", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def block(x, w, name, heads):
    """Attention and a perceptron, each added to what it reads after a LayerNorm (Vaswani 2017; Dosovitskiy 2020)."""
    q, k, v = linear(layer_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").chunk(3, -1)
    attended = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        weights = torch.exp(torch.einsum("nid,njd->nij", a, b) / math.sqrt(a.shape[-1]))
        attended.append(torch.einsum("nij,njd->nid", weights / weights.sum(-1, keepdim=True), c))
    x = x + linear(torch.cat(attended, -1), w, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
    return x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, w, f"{name}.mlp.fc2")


def positions(side, dim):
    """Appendix A.1: sines and cosines of a patch's column, then of its row; zeros for CLS."""
    table = torch.zeros(1 + side * side, dim, dtype=torch.float64)
    for place in range(side * side):
        for half, coordinate in enumerate((place % side, place // side)):
            for i in range(dim // 4):
                angle = coordinate / 10000 ** (i / (dim / 4))
                table[1 + place, half * dim // 2 + i] = math.sin(angle)
                table[1 + place, half * dim // 2 + dim // 4 + i] = math.cos(angle)
    return table


def reference_loss(w, image, hidden, *, patch, heads, decoder_heads, norm_pix):
    """He et al. 2021, section 3, one image at a time; ``hidden`` bool (N, L) says which patches are masked."""
    side, channels = image.shape[-1] // patch, image.shape[1]
    total, count = 0.0, 0
    for picture, mask in zip(image, hidden, strict=True):
        squares = [
            picture[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            for r in range(side)
            for c in range(side)
        ]
        visible = [place for place in range(side**2) if not mask[place]]
        kernel = w["patch_embed.proj.weight"].flatten(1)
        tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
        for place in visible:
            token = kernel @ squares[place].flatten() + w["patch_embed.proj.bias"]
            tokens.append(token + w["pos_embed"][0, 1 + place])
        x = torch.stack(tokens)[None]
        for i in range(2):
            x = block(x, w, f"blocks.{i}", heads)
        x = linear(layer_norm(x, w, "norm"), w, "decoder_embed")[0]
        everything = [x[0] + w["decoder_pos_embed"][0, 0]]
        for place in range(side**2):
            token = w["mask_token"][0, 0] if mask[place] else x[1 + visible.index(place)]
            everything.append(token + w["decoder_pos_embed"][0, 1 + place])
        x = torch.stack(everything)[None]
        for i in range(2):
            x = block(x, w, f"decoder_blocks.{i}", decoder_heads)
        pred = linear(layer_norm(x, w, "decoder_norm"), w, "decoder_pred")[0, 1:]
        for place in range(side**2):
            if mask[place]:
                target = squares[place].permute(1, 2, 0).flatten()
                if norm_pix:
                    target = (target - target.mean()) / (target.var(correction=1) + 1e-6).sqrt()
                total = total + (pred[place] - target).square().sum() / (patch**2 * channels)
                count += 1
    return total / count


def reference_weights(*, side, patch, channels, dim, decoder_dim):
    """Random weights of a small model, under the names of the authors' checkpoints."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.2

    def layer(name, inputs, outputs):
        return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}

    def norm(name, width):
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    def transformer(name, width):
        return {
            **norm(f"{name}.norm1", width),
            **layer(f"{name}.attn.qkv", width, 3 * width),
            **layer(f"{name}.attn.proj", width, width),
            **norm(f"{name}.norm2", width),
            **layer(f"{name}.mlp.fc1", width, 4 * width),
            **layer(f"{name}.mlp.fc2", 4 * width, width),
        }

    w = {"cls_token": draw(1, 1, dim), "pos_embed": positions(side, dim)[None], "mask_token": draw(1, 1, decoder_dim)}
    w |= {"patch_embed.proj.weight": draw(dim, channels, patch, patch), "patch_embed.proj.bias": draw(dim)}
    w |= {**transformer("blocks.0", dim), **transformer("blocks.1", dim), **norm("norm", dim)}
    w |= {"decoder_pos_embed": positions(side, decoder_dim)[None], **layer("decoder_embed", dim, decoder_dim)}
    w |= {**transformer("decoder_blocks.0", decoder_dim), **transformer("decoder_blocks.1", decoder_dim)}
    return w | {**norm("decoder_norm", decoder_dim), **layer("decoder_pred", decoder_dim, patch**2 * channels)}


OURS = {
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.embed",
    "decoder_blocks": "decoder.blocks",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.predict",
}


def our_name(theirs):
    head, dot, rest = theirs.partition(".")
    return OURS.get(head, f"backbone.{head}") + dot + rest


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_authors_model_has_the_same_loss_and_gradients(norm_pix):
    spec = ImageSpec(12, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    method = mae(
        spec,
        options={"patch_size": 3},
        norm_pix=norm_pix,
        mask_ratio=0.7,
        decoder_dim=12,
        decoder_depth=2,
        decoder_heads=3,
    ).double()
    weights = reference_weights(side=4, patch=3, channels=3, dim=16, decoder_dim=12)
    places = weights.pop("decoder_pos_embed")
    torch.testing.assert_close(method.decoder.positions, places[:, 1:], rtol=0, atol=1e-6)  # no parameter of ours
    method.load_state_dict({our_name(name): weight for name, weight in weights.items()}, strict=True)
    method.decoder.positions.copy_(places[:, 1:])  # to the last digit

    image, key = pictures(4, spec) / 255.0, keys(4)
    ours = method.loss({"views": [image.double()], "key": key})["loss"]
    hidden = mask_of(method.visible_patches(key), 16)
    assert hidden.sum(1).tolist() == [12] * 4  # floor(16 * 0.3) = 4 are seen

    weights = {name: weight.requires_grad_(name != "pos_embed") for name, weight in weights.items()}
    x = method.normalize(image.double())
    theirs = reference_loss(
        {**weights, "decoder_pos_embed": places}, x, hidden, patch=3, heads=2, decoder_heads=3, norm_pix=norm_pix
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    ours.backward()
    theirs.backward()
    parameters = dict(method.named_parameters())
    for name, weight in weights.items():
        if name != "pos_embed":
            torch.testing.assert_close(parameters[our_name(name)].grad, weight.grad, rtol=1e-8, atol=1e-12, msg=name)


# The encoder


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (ImageSpec(28, 1), {}),
        (ImageSpec((16, 32), 4), {"global_pool": "avg", "class_token": False}),
        (ImageSpec((24, 16), 3), {"reg_tokens": 2, "init_values": 0.1, "global_pool": "avg"}),
    ],
)
def test_the_encoder_alone_loads_into_plain_timm(spec, options, make_trainer):
    method = mae(spec, options=options, lr=1e-2)
    images = pictures(8, spec)
    make_trainer(max_epochs=2).fit(method, torch.utils.data.DataLoader(images, batch_size=4))
    patch = method.grid.patch[0]
    plain = timm.create_model(
        "vit_small_patch16_224",
        img_size=spec.size,
        in_chans=spec.channels,
        num_classes=0,
        patch_size=patch,
        **VIT,
        **options,
    )
    plain.load_state_dict(method.backbone.state_dict(), strict=True)
    x = method.normalize(images / 255.0)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), method.represent(images), rtol=1e-5, atol=1e-5)


def test_embeddings_are_those_of_whole_images(images, spec):
    method = mae(spec).eval()
    x = images[:8] / 255.0
    everything = torch.arange(method.grid.tokens).expand(8, -1)
    whole = encode_masked(method.backbone, method.normalize(x), everything, method.grid).pooled
    torch.testing.assert_close(method.embed(x), whole)
    changed = method.embed(x.clone().index_fill_(3, torch.tensor([15]), 0.5))  # no pixel is left out
    assert (changed != method.embed(x)).any(1).all()


def test_a_vit_built_by_name_starts_from_the_papers_weights(spec):
    method = mae(spec)
    assert not method.backbone.pos_embed.requires_grad
    again = MAE(spec=spec, backbone=method.backbone, **DECODER)
    with torch.no_grad():
        method.backbone.pos_embed.add_(1)
    method.backbone.pos_embed.requires_grad_()
    before = [p.clone() for p in method.backbone.parameters()]
    again.configure_model()  # a network of one's own stays as it is
    assert all(torch.equal(a, b) for a, b in zip(before, again.backbone.parameters(), strict=True))
    assert again.backbone.pos_embed.requires_grad


# Masks


def test_masks_are_those_of_the_keys_in_any_company(spec, images):
    method = mae(spec).double().eval()
    batch = batch_for(method, images[:12])

    def loss(rows):
        return method.loss({"views": [batch["views"][0][rows]], "key": batch["key"][rows]})["loss"]

    alone = torch.stack([loss([row]) for row in range(12)])
    torch.testing.assert_close(loss(list(range(12))), alone.mean())
    torch.testing.assert_close(loss([7, 2, 5]), alone[[7, 2, 5]].mean())
    other = {**batch, "key": batch["key"] + 1}
    assert not torch.equal(method.loss(other)["loss"], method.loss(batch)["loss"])


def test_masks_change_each_epoch_and_stay_in_validation(spec, images, make_trainer):
    seen = {"train": [], "val": []}

    class Recorded(MAE):
        def loss(self, batch):
            stage = "train" if self.training else "val"
            if not self.trainer.sanity_checking:
                seen[stage].append((batch["index"], self.visible_patches(batch["key"])))
            return super().loss(batch)

    method = Recorded(backbone_options=VIT, **DECODER)
    make_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=2).fit(method, Quickstart(batch_size=8))
    (first, second), (third, fourth) = seen["val"][:2], seen["val"][2:]
    for before, after in ((first, third), (second, fourth)):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
    assert len({tuple(row) for _, keep in seen["train"] for row in keep.tolist()}) == 32


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "convnet", "mlp"])
def test_nothing_hidden_reaches_the_prediction(backbone, spec, images):
    method, key = mae(spec, backbone, mask_patch=4 if backbone == "mlp" else None).eval(), keys(8)
    x, keep = method.normalize(images[:8] / 255.0), method.visible_patches(key)
    hidden = method.grid.pixels(mask_of(keep, method.grid.tokens))
    pred = method._predict(x, keep, key)
    assert torch.equal(method._predict(torch.where(hidden, x.flip(0), x), keep, key), pred)
    assert not torch.equal(method._predict(torch.where(hidden, x, x.flip(0)), keep, key), pred)


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


# Runs


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "mlp"])
def test_a_short_run_beats_the_mean_patch(backbone, make_trainer):
    class Compared(MAE):
        def loss(self, batch):
            target = self.grid.patchify(self.normalize(batch["views"][0]))
            mask = mask_of(self.visible_patches(batch["key"]), self.grid.tokens)
            place = target.mean(0, keepdim=True).expand_as(target)  # of this very batch: the best that needs no image
            return {**super().loss(batch), "place": masked_mse(place, target, mask)}

    options = {"embed_dim": 64, "depth": 2, "num_heads": 2} if backbone.startswith("vit") else {}
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    method = Compared(
        backbone=backbone, backbone_options=options, norm_pix=False, lr=5e-3, lr_scaling="none", seed=0, **decoder
    )
    trainer = make_trainer(limit_train_batches=50, limit_val_batches=2)
    trainer.fit(method, Quickstart(batch_size=128))
    loss, trivial = (trainer.callback_metrics[f"val/{name}"] for name in ("loss", "place"))
    assert loss < 0.85 * trivial


def test_normalised_patches_are_learnt_too(make_trainer, spec):
    """Half of the images have stripes across, half down: what is visible tells what is hidden."""
    stripes = ((torch.arange(16) % 4 < 2) * 255).to(torch.uint8).expand(16, 16)
    images = torch.stack([stripes, stripes.T]).repeat(64, 1, 1)[:, None]
    method = mae(
        spec, lr=1e-2, lr_scaling="none", views=SingleView(), seed=0, options={"patch_size": 4}, decoder_dim=32
    )
    loader = torch.utils.data.DataLoader(images, batch_size=32)
    trainer = make_trainer(max_epochs=16)
    trainer.fit(method, loader, loader)
    target, _, _ = normalize_patches(method.grid.patchify(images / 255.0))
    mean_patch = (target - target.mean((0, 1))).square().mean()
    assert trainer.callback_metrics["val/loss"] < 0.1 * mean_patch


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "convnet", "mlp"])
def test_a_checkpoint_of_a_plain_loaders_run_embeds_and_reconstructs(
    backbone, spec, loader, images, make_trainer, tmp_path
):
    method = MAE(spec=spec, backbone=backbone, backbone_options=OTHERS.get(backbone, VIT), **DECODER)
    trainer = make_trainer()
    trainer.fit(method, loader, loader)
    assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = MAE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.views == method.views
    assert torch.equal(loaded.represent(images), method.represent(images))
    for name, column in method.reconstruct(images, keys(64)).items():
        assert torch.equal(loaded.reconstruct(images, keys(64))[name], column)
    untrained = method.untrained()
    assert not torch.equal(untrained.represent(images), method.represent(images))
    assert torch.equal(untrained.represent(images), loaded.untrained().represent(images))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_other_precisions_train(precision, fill, spec, images, loader, make_trainer):
    for backbone in ("vit_small_patch16_224", "convnet"):
        options = OTHERS.get(backbone, VIT)
        method = MAE(spec=spec, backbone=backbone, backbone_options=options, mask_fill=fill, **DECODER)
        trainer = make_trainer(precision=precision, limit_train_batches=2)
        trainer.fit(method, loader, loader)
        assert trainer.callback_metrics["val/loss"].isfinite()
        assert method.reconstruct(images[:4], keys(4))["output"].dtype == torch.float32


def test_compiling_is_of_a_vits_blocks_which_masked_encoding_goes_through(spec):
    compiled, plain = mae(spec, compile=True), mae(spec)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert all(block._compiled_call_impl is not None for block in compiled.backbone.blocks)
    assert compiled.backbone._compiled_call_impl is None
    assert mae(spec, "mlp", compile=True).backbone._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_vit_has_the_same_loss_and_gradients(spec, images):
    gradients = []
    for compiled in (False, True):
        method = mae(spec, compile=compiled)
        loss = method.loss(batch_for(method, images[:8]))["loss"]
        loss.backward()
        gradients.append([loss.detach()] + [p.grad for p in method.parameters() if p.requires_grad])
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 0}, r"mask_ratio must be above 0 and below 1, got 0"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be above 0 and below 1, got 1.0"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be a number from 0 to 1, got 1.5"),
        ({"norm_pix": "yes"}, r"norm_pix must be true or false, got 'yes'"),
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
