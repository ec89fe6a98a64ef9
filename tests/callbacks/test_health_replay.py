"""What HealthGuard leaves and tells: the batch for replay, what the scaler may do, collapse, and several processes."""

import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lit_ssl import MCL, VAE, LeJEPA, MoCo, SimCLR
from lit_ssl.callbacks import CollapseError, HealthGuard, NonFiniteError, RepresentationMonitor, load_replay
from lit_ssl.callbacks.health_replay import save_replay

# Replay


class Poison(Callback):
    """A weight becomes nan before step 2."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            with torch.no_grad():
                next(pl_module.projector.parameters()).fill_(math.nan)


def test_the_saved_batch_gives_the_nan_again(method, stripes, make_trainer, tmp_path):
    with pytest.raises(NonFiniteError):
        make_trainer(callbacks=[Poison(), HealthGuard()]).fit(method(), datamodule=stripes())
    record = torch.load(tmp_path / "nonfinite-step2.pt", weights_only=True)
    assert (record["step"], record["epoch"], record["seed"], record["terms"]) == (2, 0, 0, ["train/loss"])
    assert record["batch"]["key"].shape == record["batch"]["index"].shape == (16,)
    module, batch = load_replay(tmp_path / "nonfinite-step2.pt")
    assert type(module).__name__ == "SimCLR"
    assert module.training
    assert module.loss(batch)["loss"].isnan()


class SaveAtStep2(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            path = Path(trainer.default_root_dir) / "nonfinite-step2.pt"
            save_replay(path, trainer, pl_module, batch, {})

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 2:
            self.loss = loss.detach().clone()


@pytest.mark.parametrize("kind", [SimCLR, MoCo, MCL, VAE, LeJEPA])  # MCL, VAE and LeJEPA draw in their loss
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_replayed_loss_is_that_of_the_run_to_the_bit(kind, precision, tiny, stripes, make_trainer, tmp_path):
    saver = SaveAtStep2()
    trainer = make_trainer(callbacks=[saver], max_epochs=1, precision=precision, limit_val_batches=0)
    options = {"decoder_hidden": (32,)} if kind is VAE else {}
    trainer.fit(kind(**tiny, seed=5, **options), datamodule=stripes())
    module, batch = load_replay(tmp_path / "nonfinite-step2.pt")
    assert torch.equal(module.loss(batch)["loss"], saver.loss)


def test_a_backbone_of_ones_own_needs_the_method(method, stripes, make_trainer, tmp_path):
    def own():
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
        backbone.num_features = 8
        return SimCLR(backbone=backbone, warmup_epochs=0)

    with pytest.raises(NonFiniteError):
        make_trainer(callbacks=[Poison(), HealthGuard()]).fit(own(), datamodule=stripes())
    path = tmp_path / "nonfinite-step2.pt"
    with pytest.raises(ValueError, match=r"load_replay\(path, module\)"):
        load_replay(path)
    module, batch = load_replay(path, own())
    assert module.loss(batch)["loss"].isnan()


def test_another_file_is_told(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is not a batch that HealthGuard saved"):
        load_replay(tmp_path / "a.pt")


# Mixed precision


class Overflow(SimCLR):
    """From step 1 on, ``loss`` or the gradient alone is infinite where ``bad`` says so."""

    def __init__(self, bad=None, **kwargs):
        super().__init__(**kwargs)
        self.bad = bad

    def loss(self, batch):
        losses = super().loss(batch)
        if self.bad == "loss" and self.global_step >= 1:
            losses["loss"] = losses["loss"] * math.inf
        if self.bad == "gradient" and self.global_step >= 1:
            losses["loss"] = losses["loss"] + (self.projector[-1].weight * 0).sum().sqrt()
        return losses


def mixed(scale):
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]


def test_the_scaler_does_its_work(tiny, stripes, make_trainer):
    plugins = mixed(2.0**40)  # overflows float16 and has to come down
    make_trainer(callbacks=[HealthGuard()], plugins=plugins).fit(Overflow(**tiny), datamodule=stripes())
    assert plugins[0].scaler.get_scale() < 2.0**40


@pytest.mark.parametrize(("bad", "scale", "step"), [("loss", 2.0**10, 1), ("gradient", 8.0, 4)])
def test_what_the_scaler_cannot_mend_stops(bad, scale, step, tiny, stripes, make_trainer):
    trainer = make_trainer(callbacks=[HealthGuard()], plugins=mixed(scale), max_epochs=2)
    with pytest.raises(NonFiniteError, match=rf"step {step} \("):
        trainer.fit(Overflow(bad, **tiny), datamodule=stripes())


# Collapse


class Flatten(Callback):
    """All images get one embedding from epoch 1 on."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch >= 1:
            with torch.no_grad():
                for parameter in pl_module.backbone.parameters():
                    parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)


def watched(guard, **kwargs):
    return {"callbacks": [RepresentationMonitor(), guard, Flatten()], "max_epochs": 3, **kwargs}


def test_a_collapse_stops_with_the_evidence(method, stripes, make_trainer):
    trainer = make_trainer(**watched(HealthGuard(on_collapse="stop")))
    with pytest.raises(CollapseError) as error:
        trainer.fit(method(), datamodule=stripes())
    said = str(error.value)
    assert re.search(r"collapsed by step 12 \(epoch 2\): std \S+ is below 0\.05", said)
    before, after = re.search(r"evidence: std (\S+) -> (\S+), rankme ", said).groups()
    assert float(before) > 0.05
    assert float(after) < 1e-6  # of equal embeddings, up to rounding
    assert "of 16 features" in said


def test_a_collapse_warns_once(method, stripes, make_trainer):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        make_trainer(**watched(HealthGuard(), max_epochs=4)).fit(method(), datamodule=stripes())
    assert len([w for w in record if "evidence" in str(w.message)]) == 1


def test_stopping_at_a_collapse_needs_the_monitor(method, stripes, make_trainer):
    trainer = make_trainer(callbacks=[HealthGuard(on_collapse="stop")])
    with pytest.raises(MisconfigurationException, match="needs the callback RepresentationMonitor"):
        trainer.fit(method(), datamodule=stripes())


# Several processes


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    script = Path(__file__).with_name("health_ranks.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert first["skipped"] == second["skipped"] == [2]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        assert value.isfinite().all()
    assert first["said"] == second["said"].replace("rank1", "rank0")
    assert "step 1 (epoch 0): train/loss is inf." in first["said"]
    assert sorted(map(int, first["said"].partition("(index): ")[2].partition(".")[0].split(", "))) == first["indices"]
    assert {path.name for path in tmp_path.glob("nonfinite-step1*")} == {f"nonfinite-step1-rank{r}.pt" for r in (0, 1)}
