import copy
import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl import ImageSpec, MoCo, SimCLR
from lit_ssl.checkpoint import CheckpointError
from lit_ssl.views import SimCLRViews, SingleView, clean


def simclr(spec, tiny, **kwargs):
    method = SimCLR(spec=spec, **kwargs, **{} if "backbone" in kwargs else tiny)
    method.configure_model()
    return method


def test_a_plain_loader_of_images_is_enough(spec, tiny, images, make_trainer):
    for data in (images, TensorDataset(images, torch.arange(64) % 10), [{"image": i} for i in images]):
        method = SimCLR(spec=spec, **tiny)
        trainer = make_trainer()
        trainer.fit(method, DataLoader(data, batch_size=16), DataLoader(data, batch_size=16))
        assert trainer.global_step == 4
        assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)


def test_first_weights_do_not_depend_on_the_device_that_a_trainer_builds_them_on(spec, tiny):
    """A trainer builds a model under its device, and each kind of device has a random generator of its own."""
    here = simclr(spec, tiny, seed=0).state_dict()
    with torch.device("meta"):
        there = simclr(spec, tiny, seed=0).state_dict()
    assert all(torch.equal(there[name], weight) for name, weight in here.items())


def test_validation_loss_of_the_same_weights_is_the_same(spec, tiny, loader, make_trainer):
    method = SimCLR(spec=spec, **tiny)
    trainer = make_trainer()
    first, second = (trainer.validate(method, loader, verbose=False)[0]["val/loss"] for _ in range(2))
    assert first == second


def test_without_a_spec_the_error_says_how_to_give_one(tiny, loader, make_trainer):
    with pytest.raises(ValueError, match=r"spec is needed .*SimCLR\(spec=ImageSpec\(32, channels=3\)\)"):
        make_trainer().fit(SimCLR(**tiny), loader)


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone(spec, tiny):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a = simclr(spec, tiny)
    assert torch.equal(torch.rand(1), expected)
    b, c = simclr(spec, tiny), simclr(spec, tiny, seed=1)
    weights = [next(m.backbone.parameters()) for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_represent_is_the_clean_view_in_evaluation_mode(spec, images):
    method = simclr(spec, {}, backbone="convnet")
    method.train()
    method.projector.eval()
    state = copy.deepcopy(method.state_dict())
    features = method.represent(images)
    assert features.shape == (64, method.num_features)
    assert not features.requires_grad
    assert method.backbone.training
    assert not method.projector.training
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())
    method.eval()
    torch.testing.assert_close(features, method.embed(clean(images, spec, torch.float32)))


def test_untrained_has_the_first_weights(spec, tiny, loader, make_trainer, images):
    method = SimCLR(spec=spec, **tiny)
    method.configure_model()
    first = method.represent(images)
    make_trainer().fit(method, loader)
    assert not torch.equal(method.represent(images), first)
    assert torch.equal(method.untrained().represent(images), first)
    assert not torch.equal(method.represent(images), first)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_a_module_of_ones_own_is_a_backbone(spec, loader, make_trainer, tmp_path, images):
    method = SimCLR(backbone=Own(), spec=spec)
    trainer = make_trainer()
    trainer.fit(method, loader)
    assert method.num_features == 6
    assert any(name.startswith("backbone.") for name in method.state_dict())
    fresh = method.untrained()
    assert not torch.equal(fresh.represent(images), method.represent(images))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match=r"with backbone given as a test_module\.Own, .* again, backbone=\.\.\."):
        SimCLR.load_from_checkpoint(tmp_path / "own.ckpt")
    again = SimCLR.load_from_checkpoint(tmp_path / "own.ckpt", backbone=Own(), weights_only=True)
    assert torch.equal(again.represent(images), method.represent(images))


@pytest.mark.parametrize("method_class", [SimCLR, MoCo])
def test_a_checkpoint_loads_without_data_or_unpickling(
    method_class, spec, tiny, loader, make_trainer, tmp_path, images
):
    method = method_class(views=SimCLRViews(scale=(0.3, 1.0)), **tiny, spec=spec)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = method_class.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.spec == spec
    assert loaded.views == method.views
    assert torch.equal(loaded.represent(images), method.represent(images))


def test_views_of_ones_own_are_left_out_of_the_checkpoint(spec, tiny, loader, make_trainer, tmp_path, images):
    method = SimCLR(views=lambda image, key, spec, dtype: [clean(image, spec, dtype)] * 2, spec=spec, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="with views given as a builtins.function, .* the method has its own"):
        loaded = SimCLR.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(loaded.represent(images), method.represent(images))


def test_the_spec_of_a_checkpoint_may_have_come_from_data(tiny, loader, make_trainer, tmp_path, spec):
    method = SimCLR(**tiny)
    method.spec = spec  # as configure_model takes it from a data module
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert SimCLR.load_from_checkpoint(tmp_path / "a.ckpt").spec == spec


def test_it_starts_from_another_runs_backbone(spec, tiny, loader, make_trainer, tmp_path, images):
    method = SimCLR(spec=spec, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = MoCo(spec=spec, init_from=str(tmp_path / "a.ckpt"), queue_size=16, seed=5, **tiny)
    other.configure_model()
    assert torch.equal(other.represent(images), method.represent(images))
    with pytest.raises(ValueError, match=r"init_from .*pretrained"):
        SimCLR(init_from="x", pretrained=True)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 5, "max_epochs": -1}, {"limit_train_batches": 2}])
def test_learning_rate_scales_warms_up_and_ends_at_zero(spec, tiny, loader, make_trainer, accumulate, limit):
    rates = []

    class Recorded(SimCLR):
        def optimizer_step(self, *args, **kwargs):
            rates.append(self.optimizers().param_groups[0]["lr"])
            super().optimizer_step(*args, **kwargs)

    method = Recorded(spec=spec, optimizer="sgd", lr=1.6, warmup_epochs=0.25 * accumulate, **tiny)
    trainer = make_trainer(accumulate_grad_batches=accumulate, **limit)
    trainer.fit(method, loader)
    assert len(rates) == trainer.global_step == trainer.estimated_stepping_batches
    peak = 1.6 * 16 * accumulate / 256
    assert max(rates) <= peak + 1e-12
    if len(rates) > 2:
        assert rates[-1] < peak * 0.45
        assert max(rates) > peak * 0.7
    assert rates == sorted(rates, reverse=True) or rates.index(max(rates)) <= math.ceil(len(rates) / 5)


def test_every_trainable_parameter_is_optimised(spec, tiny, loader, make_trainer):
    method = MoCo(spec=spec, queue_size=16, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    groups = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
    assert {id(p) for p in groups} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(groups) == len({id(p) for p in groups})
    assert not {id(p) for p in groups} & {id(p) for p in method.key_backbone.parameters()}


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_train(precision, spec, loader, make_trainer):
    method = SimCLR(backbone="convnet", spec=spec, optimizer="adamw", lr=1e-3, channels_last=True)
    trainer = make_trainer(precision=precision)
    trainer.fit(method, loader, loader)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=2.0**10)])
def test_gradients_are_clipped_in_mixed_precision(scaler, spec, loader, make_trainer):
    method = SimCLR(backbone="convnet", spec=spec, optimizer="adamw", lr=1e-3)
    precision = MixedPrecision("16-mixed" if scaler else "bf16-mixed", "cpu", scaler)
    trainer = make_trainer(plugins=[precision], gradient_clip_val=1e-3)
    trainer.fit(method, loader)
    assert trainer.optimizers[0].defaults["fused"]
    norms = [p.grad.norm() for p in method.parameters()]
    assert 0 < torch.stack(norms).norm() <= 1.001e-3


def test_compile_keeps_names_and_results(spec, tiny, images):
    plain, compiled = simclr(spec, tiny), SimCLR(spec=spec, compile=True, **tiny)
    compiled.configure_model()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    torch.testing.assert_close(plain.represent(images), compiled.represent(images), rtol=1e-4, atol=1e-5)


def test_predictions_carry_index_and_label(spec, tiny, images, make_trainer):
    loader = DataLoader([{"image": i, "label": 3, "index": n} for n, i in enumerate(images)], batch_size=32)
    method = simclr(spec, tiny)
    out = make_trainer().predict(method, loader)
    assert torch.cat([o["index"] for o in out]).tolist() == list(range(64))
    assert set(torch.cat([o["label"] for o in out]).tolist()) == {3}
    assert torch.cat([o["embedding"] for o in out]).shape == (64, method.num_features)


def test_data_of_the_wrong_kind_is_named(spec, tiny, images, make_trainer):
    with pytest.raises(TypeError, match="uint8"):
        make_trainer().fit(SimCLR(spec=spec, **tiny), DataLoader(images.float() / 255, batch_size=16))
    with pytest.raises(ValueError, match="channels"):
        make_trainer().fit(SimCLR(spec=ImageSpec(16, 3), **tiny), DataLoader(images, batch_size=16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs must be a finite number of at least 0, got -1"),
        ({"optimizer": "adamx"}, "optimizer"),
        ({"lr_scaling": "cubic"}, "lr_scaling .*cubic"),
        ({"schedule": "step"}, "schedule .*step"),
        ({"seed": -3}, "seed must be an integer .*got -3"),
        ({"weight_decay": -0.1}, "weight_decay .*-0.1"),
    ],
)
def test_a_bad_argument_is_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimCLR(**arguments)


def test_a_loader_without_a_batch_is_named(spec, tiny, images, make_trainer):
    with pytest.raises(ValueError, match="the training loader has no batch"):
        make_trainer().fit(SimCLR(spec=spec, **tiny), DataLoader(images, batch_size=65, drop_last=True))


def test_one_view_is_not_enough_for_two(spec, tiny, loader, make_trainer):
    with pytest.raises(ValueError, match=r"views of SimCLR must make 2 views an image, got 1 from SingleView"):
        make_trainer().fit(SimCLR(spec=spec, views=SingleView(), **tiny), loader)
