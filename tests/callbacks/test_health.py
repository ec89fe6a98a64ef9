"""HealthGuard: it stops before the optimizer acts, skips without a trace, and changes no healthy run."""

import math
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lit_ssl import MoCo, SimCLR
from lit_ssl.callbacks import HealthGuard, NonFiniteError, OnlineLinearProbe
from lit_ssl.views import SingleView


class Mined(SimCLR):
    """The loss of its batches number ``at`` is ``value``, or only the gradient of the projector's last weight is."""

    def __init__(self, at=(2,), value=math.nan, gradient=False, **kwargs):
        super().__init__(**kwargs)
        self.at, self.value, self.gradient, self.batches = at, value, gradient, 0

    def loss(self, batch):
        losses = super().loss(batch)
        self.batches += self.training
        if self.training and self.batches - 1 in self.at:
            if self.gradient:
                return {"loss": losses["loss"] + (self.projector[-1].weight * 0).sum().sqrt()}  # 0, its slope infinite
            return {"loss": losses["loss"] * self.value, "extra": torch.tensor(self.value), "calm": torch.ones(())}
        return losses


class MinedMoCo(MoCo):
    def loss(self, batch):
        losses = super().loss(batch)
        if self.training and self.global_step == 2:
            self._keys = [keys * math.nan for keys in self._keys]
            return {"loss": losses["loss"] * math.nan}
        return losses


class Keep(Callback):
    """The weights and the optimizer's state before each batch, and the samples of it."""

    def on_train_start(self, trainer, pl_module):
        self.seen, self.optimizer, self.indices = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        state = trainer.optimizers[0].state_dict()["state"]
        self.optimizer.append({(i, k): v.clone() for i, s in state.items() for k, v in s.items() if torch.is_tensor(v)})
        self.indices.append(batch["index"].tolist())


@pytest.fixture
def mined(tiny):
    return lambda **kwargs: Mined(**{**tiny, "warmup_epochs": 0, **kwargs})


def same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def stopped(trainer, module, data):
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(module, **data)
    return str(error.value)


# Stop


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_stops_before_the_optimizer_and_says_where(value, mined, stripes, make_trainer, tmp_path):
    module, keep = mined(value=value, backbone="convnet", backbone_options=None), Keep()
    said = stopped(make_trainer(callbacks=[keep, HealthGuard()]), module, {"datamodule": stripes()})
    assert f"step 2 (epoch 0): train/loss is {value}, train/extra is {value}, the gradient of backbone." in said
    assert "train/calm" not in said
    assert f"Samples (index): {', '.join(map(str, keep.indices[2]))}." in said
    assert str(tmp_path / "nonfinite-step2.pt") in said
    same(module.state_dict(), keep.seen[2])


def test_it_names_the_first_gradient(mined, stripes, make_trainer):
    said = stopped(make_trainer(callbacks=[HealthGuard()]), mined(gradient=True), {"datamodule": stripes()})
    assert "step 2 (epoch 0): the gradient of projector." in said
    assert "weight is not finite, the first of 1 out of" in said


@pytest.mark.parametrize("gradient", [False, True])
def test_it_names_the_batch_of_an_accumulated_step(gradient, mined, stripes, make_trainer, tmp_path):
    keep = Keep()
    trainer = make_trainer(accumulate_grad_batches=3, callbacks=[keep, HealthGuard()], max_epochs=2)
    said = stopped(trainer, mined(at=(1,), gradient=gradient), {"datamodule": stripes()})
    assert "step 0 (epoch 0)" in said
    batch = torch.load(tmp_path / "nonfinite-step0.pt", weights_only=True)["batch"]
    assert batch["index"].tolist() == keep.indices[1]
    assert len(batch["views"]) == 2


def test_clipping_does_not_blur_the_name(mined, stripes, make_trainer):
    trainer = make_trainer(callbacks=[HealthGuard()], gradient_clip_val=1.0)
    assert "the first of 1 out of" in stopped(trainer, mined(gradient=True), {"datamodule": stripes()})


def test_it_names_inputs_that_are_not_finite(tiny, stripes, make_trainer):
    class Broken(SingleView):
        def __call__(self, image, key, spec, dtype):
            views = super().__call__(image, key, spec, dtype) * 2
            return [views[0], views[1].index_fill(0, torch.tensor([3, 5]), math.nan)]

    keep = Keep()
    module = SimCLR(**tiny, views=Broken())
    said = stopped(make_trainer(callbacks=[keep, HealthGuard()]), module, {"datamodule": stripes()})
    wrong = [keep.indices[0][row] for row in (3, 5)]
    assert f"Inputs that are not finite: {wrong[0]}, {wrong[1]}. " in said


def test_a_plain_loader_has_no_indices(mined, spec, images, make_trainer):
    loader = DataLoader(images, batch_size=16)
    said = stopped(make_trainer(callbacks=[HealthGuard()]), mined(spec=spec), {"train_dataloaders": loader})
    assert "Its 16 samples have no index." in said


def test_the_message_survives_a_full_disk(mined, stripes, make_trainer, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    said = stopped(make_trainer(callbacks=[HealthGuard()]), mined(), {"datamodule": stripes()})
    assert "could not be saved ([Errno 28] No space left on device)" in said
    assert not list(tmp_path.glob("nonfinite*"))


def test_nothing_is_saved_where_that_is_off(mined, stripes, make_trainer, tmp_path):
    said = stopped(make_trainer(callbacks=[HealthGuard(save_batch=False)]), mined(), {"datamodule": stripes()})
    assert "load_replay" not in said
    assert not list(tmp_path.glob("nonfinite*"))


# Skip


def fit_skipping(module, data, make_trainer, guard, **kwargs):
    keep = Keep()
    callbacks = [keep, guard, *kwargs.pop("callbacks", [])]
    trainer = make_trainer(callbacks=callbacks, **kwargs)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=data)
    return trainer, keep, [str(w.message) for w in record if "skipped step" in str(w.message)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars", "lamb", "adafactor", "lion"])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_skipped_step_leaves_no_trace(gradient, optimizer, mined, stripes, make_trainer, tmp_path):
    module = mined(
        at=(2, 5), gradient=gradient, optimizer=optimizer, weight_decay=0.1, backbone="convnet", backbone_options=None
    )
    guard = HealthGuard(on_nonfinite="skip")
    trainer, keep, said = fit_skipping(module, stripes(), make_trainer, guard, max_epochs=2, gradient_clip_val=1.0)
    for step in (2, 5):
        same(keep.seen[step], keep.seen[step + 1])
        same(keep.optimizer[step], keep.optimizer[step + 1])
    assert any(not torch.equal(keep.seen[3][name], value) for name, value in keep.seen[4].items())
    assert trainer.global_step == 8
    assert guard.skipped == [2, 5]
    assert trainer.callback_metrics["health/skipped"] == 2
    assert [text.rpartition(" (")[2] for text in said] == ["1 of at most 10)", "2 of at most 10)"]
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert [path.name for path in tmp_path.glob("nonfinite*")] == ["nonfinite-step2.pt"]


def test_queue_and_momentum_encoder_stay_as_they_were(tiny, stripes, make_trainer):
    module = MinedMoCo(**tiny, queue_size=32, momentum=0.5)
    _, keep, said = fit_skipping(module, stripes(), make_trainer, HealthGuard("skip"))
    same(keep.seen[2], keep.seen[3])
    assert not torch.equal(keep.seen[1]["queue"], keep.seen[2]["queue"])
    assert len(said) == 1


def test_the_schedule_moves_on(mined, stripes, make_trainer):
    rates = {}
    for at in ((), (1,)):
        trainer, _, _ = fit_skipping(mined(at=at), stripes(), make_trainer, HealthGuard("skip"))
        rates[at] = trainer.optimizers[0].param_groups[0]["lr"], trainer.lr_scheduler_configs[0].scheduler.last_epoch
    assert rates[()] == rates[(1,)]


def test_one_skip_too_many_stops(mined, stripes, make_trainer, tmp_path):
    guard = HealthGuard("skip", max_skips=1)
    with pytest.warns(UserWarning, match="skipped step 0"):
        said = stopped(make_trainer(callbacks=[guard]), mined(at=(0, 2)), {"datamodule": stripes()})
    assert "step 2 (epoch 0)" in said
    assert "1 steps were skipped before, as max_skips allows" in said
    assert {path.name for path in tmp_path.glob("nonfinite*")} == {"nonfinite-step0.pt", "nonfinite-step2.pt"}


def test_skips_are_counted_through_a_resume(mined, stripes, make_trainer, tmp_path):
    trainer, _, _ = fit_skipping(mined(at=(2,)), stripes(), make_trainer, HealthGuard("skip", max_skips=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    guard = HealthGuard("skip", max_skips=1)
    resumed = make_trainer(callbacks=[guard], max_epochs=2)
    resumed.callbacks[0].allow = ["at"]  # of the test's own method
    with pytest.raises(NonFiniteError, match="1 steps were skipped before"):
        resumed.fit(mined(at=(1,)), datamodule=stripes(), ckpt_path=tmp_path / "a.ckpt")
    assert guard.skipped == [2]


def test_the_probe_learns_on_after_a_skipped_step(mined, stripes, make_trainer):
    probe = OnlineLinearProbe(every_n_steps=1)
    module = mined(backbone="convnet", backbone_options=None)
    trainer, _, _ = fit_skipping(module, stripes(), make_trainer, HealthGuard("skip"), callbacks=[probe])
    assert math.isfinite(trainer.callback_metrics["probe/train_acc"])
    assert all(value.isfinite().all() for value in probe.state_dict()["probe"].values())


# Healthy runs


@pytest.mark.parametrize("mode", ["stop", "skip"])
@pytest.mark.parametrize("backbone", ["mlp", "convnet"])
def test_a_healthy_run_has_the_same_weights(mode, backbone, mined, stripes, make_trainer):
    found = []
    for callbacks in ([], [HealthGuard(mode)]):
        module = mined(at=(), backbone=backbone, backbone_options=None)
        trainer = make_trainer(callbacks=callbacks, max_epochs=2, accumulate_grad_batches=2)
        torch.manual_seed(7)
        trainer.fit(module, datamodule=stripes())
        found.append((module.state_dict(), torch.rand(3)))
    same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_large_gradients_are_finite(mined, stripes, make_trainer):
    class Steep(Mined):
        def loss(self, batch):
            return {"loss": super().loss(batch)["loss"] * 1e30}  # the sum of squares of its gradient overflows

    module = Steep(backbone="mlp", backbone_options={"hidden": (32, 16)}, at=(), optimizer="adamw", lr=1e-4)
    make_trainer(callbacks=[HealthGuard()]).fit(module, datamodule=stripes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, skip, got 'ignore'"),
        ({"max_skips": -1}, "max_skips must be an integer of at least 0, got -1"),
        ({"on_collapse": "skip"}, "on_collapse must be one of warn, stop, got 'skip'"),
        ({"save_batch": 1}, "save_batch must be true or false, got 1"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        HealthGuard(**arguments)
