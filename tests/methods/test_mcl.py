"""MCL: its loss, on one process and two, its runs, arguments and layer."""

import inspect
import math
import warnings

import pytest
import torch
import yaml
from ranks import run_ranks
from small_mcl import BACKBONES, LEAK, MLP, MODES, SMALL, VIT, batch_for, mcl

from lit_ssl import MCL, ImageSpec, configs
from lit_ssl.datamodules import Quickstart
from lit_ssl.evaluation import knn
from lit_ssl.losses import cosine_contrast
from lit_ssl.views import MAEViews, SimCLRViews, SingleView

# The loss


def reference_codes(method, x, keep):
    """A ViT on the visible patches of one image at a time, from timm's own parts."""
    vit, out = method.backbone, []
    for image, places in zip(x, keep, strict=True):
        patches = vit.patch_embed(image[None])[0] + vit.pos_embed[0, 1:]
        tokens = torch.stack([vit.cls_token[0, 0] + vit.pos_embed[0, 0], *(patches[p] for p in places)])[None]
        out.append(vit.norm(vit.blocks(tokens))[0, 0])
    return method.projector(torch.stack(out))


def reference_info_nce(z1, z2, t):
    z1, z2 = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    terms = []
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(len(a)):
            candidates = torch.stack([torch.exp(a[i] @ b[j] / t) for j in range(len(b))])
            terms.append(-torch.log(candidates[i] / candidates.sum()))
    assert len(candidates) == len(z1)  # B candidates: the partner, and one code of each other image
    return torch.stack(terms).mean()


@LEAK
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", ["info_nce", "cosine"])
@pytest.mark.parametrize("views", [SingleView(), SimCLRViews()], ids=["one", "two"])
def test_the_loss_is_its_formula(images, mode, objective, views):
    method = mcl(mask_mode=mode, objective=objective, views=views, temperature=0.3).double().eval()
    batch = batch_for(method, images[:6])
    first, second = batch["views"] if len(batch["views"]) == 2 else batch["views"] * 2
    keep1, keep2 = method.visible_patches(batch["key"]).chunk(2)
    z1 = reference_codes(method, method.normalize(first), keep1)
    z2 = reference_codes(method, method.normalize(second), keep2)
    expected = reference_info_nce(z1, z2, 0.3) if objective == "info_nce" else cosine_contrast(z1, z2)
    torch.testing.assert_close(method.loss(batch)["loss"], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("projector_layers", [0, 2])
@BACKBONES
def test_every_parameter_gets_a_gradient(images, backbone, projector_layers):
    method = mcl(backbone, projector_layers=projector_layers)
    method.loss(batch_for(method, images))["loss"].backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad.abs().sum() > 0 for p in trained.values() if p.ndim > 1)
    assert not hasattr(method.backbone, "pos_embed") or not method.backbone.pos_embed.requires_grad  # sine-cosine


def test_options_reach_the_loss(images):
    options = ({}, {"beta": 1.0}, {"tau_plus": 0.1}, {"decoupled": True}, {"kappa": 1 / 64}, {"objective": "cosine"})
    losses = []
    for option in options:
        method = mcl(**option)
        losses.append(method.loss(batch_for(method, images))["loss"].item())
    assert len(set(losses)) == len(options)
    chunked = mcl(chunk_size=5)
    assert chunked.loss(batch_for(chunked, images))["loss"].item() == pytest.approx(losses[0], rel=1e-5)


def test_no_rows_cost_nothing(images):
    for objective in ("info_nce", "cosine"):
        method = mcl(objective=objective).eval()
        assert method.loss(batch_for(method, images[:0]))["loss"].item() == 0


# Ranks

CASES = [
    ({"mask_mode": mode, "objective": objective}, views)
    for mode, objective, views in (
        ("shared", "info_nce", 1),
        ("shared", "cosine", 2),
        ("independent", "info_nce", 2),
        ("complement", "cosine", 1),
    )
]
SHARDS = (5, 3)


def step_on(images, mine, options, views):
    method = mcl(views=SingleView() if views == 1 else MAEViews(), **options).double()
    batch = batch_for(method, images)
    batch = {**batch, "views": [view[mine] for view in batch["views"]], "key": batch["key"][mine]}
    loss = method.loss(batch)["loss"]
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad])
    return {"loss": loss.detach(), "gradients": gradients, "patches": method.visible_patches(batch["key"])}


def rank_steps(rank, world, images):
    mine = slice(sum(SHARDS[:rank]), sum(SHARDS[: rank + 1]))
    warnings.simplefilter("ignore")
    return [step_on(images, mine, *case) for case in CASES]


@LEAK
def test_ranks_average_to_the_single_process(images):
    images = images[:8]
    ranks = run_ranks(rank_steps, 2, images)
    for case, *steps in zip(CASES, *ranks, strict=True):
        whole = step_on(images, slice(None), *case)
        for name in ("loss", "gradients"):
            mean = torch.stack([step[name] for step in steps]).mean(0)
            torch.testing.assert_close(mean, whole[name], rtol=1e-9, atol=1e-11, msg=f"{case} {name}")
        for view in range(2):
            patches = torch.cat([step["patches"].chunk(2)[view] for step in steps])
            assert torch.equal(patches, whole["patches"].chunk(2)[view]), case


# Runs


def test_training_lifts_knn_over_the_untrained_encoder(make_trainer):
    data = Quickstart(batch_size=128, num_workers=0)
    method = MCL(
        backbone="vit_tiny_patch16_224",
        backbone_options={"patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 4},
        views=SimCLRViews(strength=1.0, scale=(0.4, 1.0), colour=(0.4, 0.4, 0.0, 0.0)),
        lr=3e-3,
        lr_scaling="none",
        projector_hidden=256,
        seed=0,
    )
    make_trainer(limit_train_batches=25, limit_val_batches=0).fit(method, data)
    images, labels = data.labelled_set.images[:2000], data.labelled_set.labels[:2000]

    held_out = data.val_set.images[:1000]

    def score(method):
        return knn(method.represent(images), labels, method.represent(held_out), data.val_set.labels[:1000])

    assert score(method) > score(method.untrained()) + 0.03


@BACKBONES
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize("views", [SingleView(), SimCLRViews()], ids=["one", "two"])
def test_any_backbone_trains_from_a_plain_loader(loader, make_trainer, backbone, precision, views):
    method = MCL(spec=ImageSpec(16, 1), views=views, lr=0.01, **SMALL, **backbone)
    trainer = make_trainer(max_epochs=1, precision=precision)
    trainer.fit(method, loader, loader)
    assert trainer.global_step == 4
    for stage in ("train", "val"):
        loss = trainer.callback_metrics[f"{stage}/loss"]
        assert loss.isfinite()
        assert 0 < loss < 2 * math.log(16)


@BACKBONES
def test_embeddings_are_of_the_whole_image_and_survive_a_checkpoint(images, loader, make_trainer, tmp_path, backbone):
    method = MCL(spec=ImageSpec(16, 1), mask_ratio=0.75, **SMALL, **backbone)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "mcl.ckpt")
    loaded = MCL.load_from_checkpoint(tmp_path / "mcl.ckpt").eval()
    assert loaded.mask_ratio == 0.75
    x = images[:4].float() / 255
    with torch.no_grad():
        embedded = loaded.embed(x)
        torch.testing.assert_close(embedded, method.eval().backbone((x - 0.5) / 0.5))
    assert torch.equal(embedded, loaded.represent(images[:4]))


def test_views_of_another_number_are_refused(loader, make_trainer):
    def three(image, key, spec, dtype):
        return SingleView()(image, key, spec, dtype) * 3

    with pytest.raises(ValueError, match="views of MCL must make 1 to 2 views an image, got 3"):
        make_trainer().fit(MCL(spec=ImageSpec(16, 1), views=three, **SMALL, **MLP), loader)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_mode", "random"),
        ("mask_ratio", 0.0),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.4),  # two disjoint views of more than half an image each
        ("objective", "nt_xent"),
        ("temperature", 0.0),
        ("beta", -1.0),
        ("tau_plus", 1.0),
        ("kappa", -0.5),
        ("chunk_size", 0),
        ("projector_layers", -1),
        ("projector_hidden", 0),
        ("projector_dim", 1.5),
        ("mask_patch", 0),
        ("mask_fill", "median"),
        ("lr", 0.0),
    ],
)
def test_a_bad_argument_is_named_at_construction(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*got .*{value}"):
        MCL(**{name: value})


def test_half_an_image_is_the_most_that_disjoint_views_can_show():
    for mode in ("shared", "complement"):
        with pytest.raises(ValueError, match=r"mask_ratio must be at least 0.5 for two disjoint views, got 0.49"):
            MCL(mask_mode=mode, mask_ratio=0.49)
    assert mcl(mask_mode="independent", mask_ratio=0.1).visible == 14
    with pytest.raises(ValueError, match="at least 2 patches"):
        mcl({**VIT, "backbone_options": {**VIT["backbone_options"], "patch_size": 16}})


# Layers


def layer(name):
    return yaml.safe_load(configs.find(f"method/{name}").read_text())["model"]["init_args"]


def test_the_layer_holds_the_defaults():
    defaults = {name: p.default for name, p in inspect.signature(MCL).parameters.items() if name != "views"}
    arguments = layer("mcl")
    assert arguments.pop("views") == {"class_path": "lit_ssl.views.SimCLRViews"}
    assert isinstance(MCL().views, SimCLRViews)
    ours = {name: value for name, value in arguments.items() if name in defaults}
    assert set(ours) == set(defaults) - {"kwargs", "chunk_size"}
    assert ours == {name: defaults[name] for name in ours}
