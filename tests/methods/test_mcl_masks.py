"""Which patches MCL's views show, and that pairs cannot be told by them."""

import itertools
import math
import warnings

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from small_mcl import BACKBONES, LEAK, MLP, MODES, SMALL, VIT, batch_for, mcl
from torch.utils.data import DataLoader

from lit_ssl import MCL, ImageSpec, configs
from lit_ssl.methods.mcl import position_leak
from lit_ssl.random import sample_key
from lit_ssl.views import SimCLRViews, SingleView


def keys(n, seed=0):
    return sample_key(seed, 0, torch.arange(n))


def halves(method, key):
    first, second = method.visible_patches(key).chunk(2)
    assert first.shape == second.shape == (len(key), method.visible)
    return [{tuple(sorted(row)) for row in view.tolist()} for view in (first, second)], first, second


@LEAK
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.95])
@pytest.mark.parametrize("mode", ["shared", "complement"])
@pytest.mark.parametrize("backbone", [VIT, MLP], ids=["vit", "mlp"])
def test_disjoint_views_share_no_patch(backbone, mode, ratio):
    method = mcl(backbone, mask_mode=mode, mask_ratio=ratio)
    _, first, second = halves(method, keys(40))
    tokens = method.grid.tokens
    assert method.visible == max(1, int(tokens * (1 - ratio) + 1e-9))
    for row in torch.cat([first, second], 1).tolist():
        assert len(set(row)) == 2 * method.visible
        assert set(row) <= set(range(tokens))


def test_an_odd_number_of_patches_leaves_one_out():
    method = mcl(spec=ImageSpec((12, 20), 1))
    assert (method.grid.tokens, method.visible) == (15, 7)
    _, first, second = halves(method, keys(5))
    assert len(set(torch.cat([first, second], 1)[0].tolist())) == 14


def test_shared_views_are_one_partition_for_all_images():
    method = mcl()
    (first, second), *_ = halves(method, keys(40))
    assert len(first) == len(second) == 1
    assert torch.equal(method.visible_patches(keys(40)), method.visible_patches(keys(40, seed=9)))


@LEAK
@pytest.mark.parametrize("mode", ["independent", "complement"])
def test_other_masks_belong_to_their_image_alone(mode):
    method = mcl(mask_mode=mode)
    (first, second), *views = halves(method, keys(40))
    assert len(first) > 35
    assert len(second) > 35
    alone = method.visible_patches(keys(40)[7:9]).chunk(2)
    for view, part in zip(views, alone, strict=True):
        assert torch.equal(view[7:9], part)
    assert not torch.equal(method.visible_patches(keys(40)), method.visible_patches(keys(40, seed=1)))


def test_independent_views_overlap_by_chance():
    """Each patch of one view is in the other with the same probability, whatever the first one shows."""
    method = mcl(mask_mode="independent")
    first, second = (
        torch.zeros(4000, 16).scatter(1, view, 1.0) for view in method.visible_patches(keys(4000)).chunk(2)
    )
    correlation = (first - 0.5).T @ (second - 0.5) / 4000 / 0.25
    assert correlation.abs().max() < 5 / math.sqrt(4000)
    assert (first.mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(4000)
    ratio = mcl(mask_mode="independent", mask_ratio=0.25)
    assert ratio.visible == 12  # views that overlap may show most of the image


class Partitions(Callback):
    def __init__(self):
        self.seen = {"train": [], "validate": []}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen["train"].append(tuple(pl_module.visible_patches(batch["key"])[0].tolist()))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.seen["validate"].append(tuple(pl_module.visible_patches(batch["key"])[0].tolist()))


def test_the_shared_partition_is_new_at_each_step_and_fixed_in_validation(loader, make_trainer):
    runs = []
    for seed in (0, 0, 1):
        watcher = Partitions()
        trainer = make_trainer(max_epochs=2, callbacks=[watcher])
        trainer.fit(MCL(spec=ImageSpec(16, 1), seed=seed, **SMALL, **MLP), loader, loader)
        assert len(watcher.seen["train"]) == len(set(watcher.seen["train"])) == 8
        assert len(watcher.seen["validate"]) > 8
        assert len(set(watcher.seen["validate"])) == 1
        runs.append(watcher.seen)
    assert runs[0] == runs[1]
    assert not set(runs[0]["train"]) & set(runs[2]["train"])


# What the encoder sees


@pytest.mark.parametrize("views", [SingleView(), SimCLRViews()], ids=["one", "two"])
def test_both_views_go_through_a_vit_once_and_only_what_they_show(images, views):
    method = mcl(views=views)
    seen = {"embedded": [], "encoded": []}
    method.backbone.patch_embed.register_forward_hook(lambda m, i, o: seen["embedded"].append(tuple(i[0].shape)))
    method.backbone.blocks[0].register_forward_hook(lambda m, i, o: seen["encoded"].append(tuple(i[0].shape)))
    batch = batch_for(method, images)
    method.loss(batch)
    assert seen["embedded"] == [(64 * len(batch["views"]), 1, 16, 16)]  # one picture is embedded once for both views
    assert seen["encoded"] == [(128, 1 + 8, 32)]


@BACKBONES
@LEAK
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_code_knows_nothing_of_what_its_view_hides(images, backbone, mode, count):
    method = mcl(backbone, mask_mode=mode, views=SingleView() if count == 1 else SimCLRViews()).double().eval()
    codes = []
    method.projector.register_forward_hook(lambda m, i, o: codes.append(o))
    batch = batch_for(method, images[:6])
    method.loss(batch)
    shown = method.visible_patches(batch["key"])[:6]
    mask = torch.zeros(6, method.grid.tokens, dtype=torch.bool).scatter(1, shown, True)
    other = torch.rand_like(batch["views"][0])
    pixels = method.grid.pixels(mask)
    batch["views"][0] = torch.where(pixels, batch["views"][0], other)  # what the first view hides is changed
    method.loss(batch)
    torch.testing.assert_close(codes[1][:6], codes[0][:6], rtol=1e-10, atol=1e-10)
    batch["views"][0] = torch.where(pixels, other, batch["views"][0])  # and now what it shows
    method.loss(batch)
    assert ((codes[2] - codes[1])[:6].norm(dim=1) > 1e-3).all()


def test_filling_noise_differs_between_the_views_of_an_image(images):
    """Were it alike, pairs could be told by it."""
    for views in (SingleView(), lambda image, key, spec, dtype: [SingleView()(image, key, spec, dtype)[0]] * 2):
        method = mcl(MLP, mask_fill="noise", mask_mode="independent", mask_ratio=0.75, views=views)
        seen = []
        method.backbone.register_forward_pre_hook(lambda m, i, seen=seen: seen.append(i[0]))
        batch = batch_for(method, images)
        method.loss(batch)
        keep = method.visible_patches(batch["key"])
        hidden = torch.ones(128, 256, dtype=torch.bool).scatter(1, keep, False)
        first, second = (part.flatten(1) for part in seen[0].chunk(2))
        both = (hidden[:64] & hidden[64:]).double()
        a, b = ((x - (x * both).sum(1, keepdim=True) / both.sum(1, keepdim=True)) * both for x in (first, second))
        correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        assert correlation.mean().abs() < 0.05


# The leak


def train_on_nothing(mode, make_trainer, steps=100):
    """Mean loss over the last 20 of ``steps`` steps on all-zero images of 16 patches, 128 in a batch."""
    losses = []

    class Recorded(MCL):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.detach())
            return loss

    method = Recorded(
        mask_mode=mode,
        spec=ImageSpec(16, 1),
        views=SingleView(),
        temperature=0.1,
        projector_hidden=64,
        projector_dim=32,
        lr=3e-3,
        lr_scaling="none",
        weight_decay=0.0,
        **VIT,
    )
    loader = DataLoader(torch.zeros(1, 1, 16, 16, dtype=torch.uint8).expand(128 * steps, -1, -1, -1), batch_size=128)
    make_trainer().fit(method, loader)
    assert len(losses) == steps
    assert method.grid.tokens == 16
    return torch.stack(losses[-20:]).mean().item()


@LEAK
@pytest.mark.parametrize("mode", MODES)
def test_pairs_cannot_be_told_by_position_alone(mode, make_trainer):
    """Without anything to see, no leak-free mode gets below log B; a fresh partition for each image does, far."""
    loss, chance = train_on_nothing(mode, make_trainer), math.log(128)
    if mode == "complement":
        assert loss < 0.25 * chance
    else:
        assert loss == pytest.approx(chance, abs=0.02)


def test_the_leak_is_what_one_view_tells_about_the_other():
    """Counted: of the sets that the second view could be, those disjoint from the first."""
    for tokens, visible in ((4, 2), (7, 3), (9, 2), (16, 1)):
        sets = [set(s) for s in itertools.combinations(range(tokens), visible)]
        left = sum(not s & set(range(visible)) for s in sets)
        assert position_leak(tokens, visible) == pytest.approx(math.log(len(sets) / left), abs=1e-9)
    assert position_leak(16, 8) == pytest.approx(math.log(12870))


def test_the_leaky_mode_says_why():
    with pytest.warns(UserWarning, match="leaks: the places that one view of an image shows tell which ones the other"):
        method = MCL(mask_mode="complement", spec=ImageSpec(16, 1), **VIT)
    with pytest.warns(UserWarning, match=r"8 of 16 patches in each view leaks 9.5 nats: .* fall from log B by as much"):
        method.configure_model()
    method = MCL(mask_mode="complement", mask_ratio=0.9, spec=ImageSpec(256, 1), **VIT)  # sparse, but of 4096 patches
    with pytest.warns(UserWarning, match=r"409 of 4096 patches in each view leaks 45.5 nats"):
        method.configure_model()


def test_modes_that_do_not_leak_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in (
            {},
            {"mask_mode": "independent"},
            {"mask_mode": "shared", "mask_ratio": 0.9},
            {"mask_mode": "complement", "mask_ratio": 0.95, "spec": ImageSpec(56, 1)},  # 9 of 196 patches each
        ):
            mcl(**options)


def test_the_layer_of_ocl_leaks_little_at_the_papers_size():
    arguments = yaml.safe_load(configs.find("method/mcl_ocl").read_text())["model"]["init_args"]
    arguments["backbone_options"] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = MCL(spec=ImageSpec(224), **arguments)
        method.configure_model()
    assert (method.grid.tokens, method.visible) == (196, 9)
    assert isinstance(method.projector, torch.nn.Identity)
    assert position_leak(196, 9) < 0.5
