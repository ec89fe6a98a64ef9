import pytest
import torch
from ranks import run_ranks
from torch import nn

import lit_ssl.methods.lejepa as lejepa
from lit_ssl import ImageSpec, LeJEPA, evaluation
from lit_ssl.datamodules import Quickstart
from lit_ssl.losses import sigreg
from lit_ssl.random import step_key
from lit_ssl.views import MultiCropViews, SimCLRViews, with_keys, with_views

HEAD = {"projector_hidden": 16, "projector_dim": 8, "num_directions": 32}
CONVNET = {"backbone": "convnet", "backbone_options": {"width": 4, "stages": 2}}
VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 1, "dynamic_img_size": True}}
CROPS = MultiCropViews(local_views=3, local_size=8)


def built(spec, backbone, **kwargs):
    method = LeJEPA(spec=spec, **{**HEAD, **kwargs}, **backbone)
    method.configure_model()
    return method


def batch_for(method, images):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


def projections(method, views):
    return torch.stack([method.projector(method.backbone(method.normalize(view))) for view in views])


@pytest.mark.parametrize(("views", "centres", "weight"), [(None, 2, 0.05), (CROPS, 2, 0.3), (CROPS, 5, 1.0)])
def test_its_loss_is_the_papers(spec, images, views, centres, weight):
    """Each view on its own, in a loop: the mean over views, images and dimensions; the centre is the global views'."""
    method = built(spec, CONVNET, views=views, global_views=centres, sigreg_weight=weight, seed=3).eval()
    batch = batch_for(method, images[:12])
    z = projections(method, batch["views"])
    assert len(z) == (2 if views is None else 5)
    centre = sum(z[:centres]) / centres
    invariance = sum((view - centre).square().mean() for view in z) / len(z)
    gaussianity = sum(sigreg(view, key=step_key(3, 0), num_directions=32) for view in z) / len(z)
    losses = method.loss(batch)
    torch.testing.assert_close(losses["invariance"], invariance)
    torch.testing.assert_close(losses["sigreg"], gaussianity)
    torch.testing.assert_close(losses["loss"], (1 - weight) * invariance + weight * gaussianity)


def test_views_of_one_size_share_a_forward_pass(spec, images):
    method = built(spec, CONVNET, views=CROPS)
    seen = []
    method.backbone.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    method.loss(batch_for(method, images[:6]))
    assert seen == [(12, 1, 16, 16), (18, 1, 8, 8)]


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_every_parameter_gets_a_gradient(spec, tiny, images, weight):
    method = built(spec, tiny, sigreg_weight=weight)
    method.loss(batch_for(method, images[:16]))["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.projector.parameters() if p.ndim > 1)


def test_no_gradient_stops_at_the_centre(spec, tiny, images):
    """Of two views alone the centre is their mean: stopped there, the invariance's gradient would be half of it."""
    method = built(spec, tiny, sigreg_weight=0.0).eval()
    views = batch_for(method, images[:8])["views"]
    first, second = projections(method, views)
    wanted = torch.autograd.grad((first - second).square().mean() / 4, method.projector[0].weight)
    found = torch.autograd.grad(method.loss({"views": views})["loss"], method.projector[0].weight)
    torch.testing.assert_close(found, wanted)


def test_directions_are_new_at_each_step_and_the_same_in_validation(spec, tiny, loader, make_trainer, monkeypatch):
    keys = {True: [], False: []}

    def recorded(z, *, key, **kwargs):
        keys[method.training].append(key.item())
        return sigreg(z, key=key, **kwargs)

    monkeypatch.setattr(lejepa, "sigreg", recorded)
    method = LeJEPA(spec=spec, seed=5, **HEAD, **tiny)
    make_trainer(max_epochs=2).fit(method, loader, loader)
    assert keys[True] == [step_key(5, step).item() for step in range(8)]
    assert len(keys[False]) == 2 + 8
    assert set(keys[False]) == {step_key(5, 0).item()}


@pytest.mark.parametrize("backbone", [CONVNET, VIT])
def test_multi_crop_trains_on_convolutions_and_on_a_vit(backbone, spec, loader, make_trainer, images):
    method = LeJEPA(spec=spec, views=CROPS, **HEAD, **backbone)
    trainer = make_trainer()
    trainer.fit(method, loader, loader)
    assert trainer.global_step == 4
    assert {"train/invariance", "train/sigreg", "val/loss"} <= set(trainer.callback_metrics)
    assert method.represent(images).shape == (64, method.num_features)


@pytest.mark.parametrize(
    ("backbone", "views"),
    [
        ({"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 1}}, CROPS),
        (VIT, MultiCropViews(local_views=1, local_size=7)),  # patches of 2 pixels
        ({"backbone": "mlp"}, CROPS),
    ],
)
def test_a_backbone_of_one_size_says_what_to_do(spec, images, backbone, views):
    method = built(spec, backbone, views=views)
    side = views.local_size
    with pytest.raises(
        ValueError, match=rf"built for 16x16 .* views of {side}x{side} .*dynamic_img_size.*local_views=0"
    ):
        method.loss(batch_for(method, images[:4]))


def test_an_error_of_the_backbone_itself_is_not_renamed(spec, images):
    class Broken(nn.Linear):
        def forward(self, x):
            if self.training:
                raise RuntimeError("broken")
            return super().forward(x.flatten(1))

    method = built(spec, {"backbone": Broken(256, 4)})
    with pytest.raises(RuntimeError, match=r"^broken$"):
        method.loss(batch_for(method, images[:4]))


def test_more_global_views_than_views(spec, tiny, images):
    method = built(spec, tiny, global_views=3)
    with pytest.raises(ValueError, match="global_views must be at most the number of views, 2, got 3"):
        method.loss(batch_for(method, images[:4]))


def test_one_view_is_refused(spec, tiny, loader, make_trainer):
    method = LeJEPA(spec=spec, views=lambda image, key, spec, dtype: [image.to(dtype) / 255], **HEAD, **tiny)
    with pytest.raises(ValueError, match="views of LeJEPA must make 2 to 100 views an image, got 1"):
        make_trainer().fit(method, loader)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigreg_weight", -0.1),
        ("sigreg_weight", 1.5),
        ("global_views", 0),
        ("num_directions", 0),
        ("knots", 1),
        ("t_max", -3.0),
        ("projector_layers", 0),
        ("projector_hidden", 0),
        ("projector_dim", 0),
        ("lr", 0.0),
    ],
)
def test_a_bad_argument_is_named_at_construction(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        LeJEPA(**{name: value})


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_any_precision(precision, spec, tiny, loader, make_trainer):
    losses = []

    class Recorded(LeJEPA):
        def loss(self, batch):
            losses.append(super().loss(batch))
            return losses[-1]

    make_trainer(precision=precision).fit(Recorded(spec=spec, **HEAD, **tiny), loader)
    wanted = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for terms in losses for value in terms.values()} == {wanted}
    assert all(value.isfinite() for terms in losses for value in terms.values())


def test_a_rank_without_rows_is_no_trouble(spec, tiny, images):
    method = built(spec, tiny).eval()
    losses = method.loss({"views": [torch.zeros(0, 1, 16, 16)] * 2})
    assert all(value == 0 for value in losses.values())


def test_a_checkpoint_round_trip(spec, tiny, loader, make_trainer, tmp_path, images):
    method = LeJEPA(spec=spec, **HEAD, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LeJEPA.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.views == method.views
    assert torch.equal(loaded.represent(images), method.represent(images))


# Ranks with different images, unequal shards: DDP's mean of gradients is the gradient of one process.

SHARDS = (3, 6)


def terms_and_gradients(rows):
    method = built(ImageSpec(8, 1), {"backbone": "mlp", "backbone_options": {"hidden": (12, 6)}}, global_views=2)
    method.double()
    views = torch.rand(4, 9, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = method.loss({"views": list(views[:, rows])})
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()} | {n: p.grad for n, p in method.named_parameters()}


def on_a_rank(rank, world):
    rows = slice(sum(SHARDS[:rank]), sum(SHARDS[: rank + 1]))
    right = terms_and_gradients(rows)
    lejepa.world_size = lambda: 1
    lejepa.global_count = lambda rows: rows  # each rank the mean of its own rows, which weigh more where they are few
    return right, terms_and_gradients(rows)


def test_ranks_average_to_the_single_process_and_a_mean_over_own_rows_would_not():
    ranks = run_ranks(on_a_rank, 2)
    wanted = terms_and_gradients(slice(None))
    right, wrong = ({name: (r0[name] + r1[name]) / 2 for name in wanted} for r0, r1 in zip(*ranks, strict=True))
    for name, value in wanted.items():
        torch.testing.assert_close(right[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert (wrong["invariance"] - wanted["invariance"]).abs() > 1e-3 * wanted["invariance"]


def test_it_learns_where_without_sigreg_it_collapses(make_trainer):
    data, methods = Quickstart(batch_size=64), {}
    for weight in (0.05, 0.0):
        methods[weight] = LeJEPA(
            backbone="convnet",
            backbone_options={"width": 16, "stem_stride": 2},
            sigreg_weight=weight,
            projector_hidden=128,
            projector_dim=32,
            num_directions=64,
            views=SimCLRViews(strength=1.0, scale=(0.4, 1.0), colour=(0.4, 0.4, 0.0, 0.0)),
            lr=1e-2,
        )
        make_trainer(limit_train_batches=35, limit_val_batches=0).fit(methods[weight], data)
    train, held_out = data.train_set.__getitems__(range(1000)), data.val_set.__getitems__(range(500))

    def accuracy(method):
        x, held_out_x = method.represent(train["image"]), method.represent(held_out["image"])
        return evaluation.knn(x, train["label"], held_out_x, held_out["label"])

    def projected(method):
        with method.evaluating():
            return method.projector(method.embed(method.clean(held_out["image"])))

    healthy, collapsed = projected(methods[0.05]), projected(methods[0.0])
    assert healthy.std(0).mean() > 0.5
    assert evaluation.rankme(healthy) > 8
    assert collapsed.std(0).mean() < 0.1
    assert accuracy(methods[0.05]) > accuracy(methods[0.05].untrained()) + 0.03
