"""What Lightning brings besides: callbacks that look for networks early, finders, loaders, and probes on any data."""

import logging
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl import ImageSpec, SimCLR
from lit_ssl.callbacks import ExactCheckpoint, OnlineKNN, OnlineLinearProbe, SummaryTable
from lit_ssl.datamodules import ImageDataModule, ImageTensors

IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4
SPEC = ImageSpec(8, 1)
SMALL = {
    **{"backbone": "mlp", "backbone_options": {"hidden": [8]}, "projector_hidden": 8, "projector_dim": 4, "seed": 0},
    **{"warmup_epochs": 0, "optimizer": "adamw"},
}


class Data(ImageDataModule):
    native = SPEC

    def load(self):
        self.train_set = self.labelled_set = ImageTensors(IMAGES, LABELS)
        self.val_set = ImageTensors(IMAGES[:16], LABELS[:16])
        self.num_classes = 4


def loader(labels=LABELS):
    return DataLoader(TensorDataset(IMAGES, labels), batch_size=16)


def vector(method):
    return torch.cat([p.detach().flatten() for p in method.parameters()])


class Keep(Callback):
    def __init__(self):
        self.weights, self.rates = {}, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights[trainer.current_epoch] = vector(pl_module).clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_weights_are_averaged(make_trainer):
    averaging, keep = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1), Keep()
    method = SimCLR(**SMALL, lr=1e-1)
    make_trainer(max_epochs=4, callbacks=[averaging, keep]).fit(method, Data(batch_size=16, seed=0))
    assert len(list(averaging._average_model.parameters())) == len(list(method.parameters()))
    assert not torch.equal(vector(method), keep.weights[3])


def test_weight_averaging_by_torch_works(make_trainer):
    averaging, keep = WeightAveraging(), Keep()
    method = SimCLR(**SMALL, lr=1e-1)
    make_trainer(max_epochs=2, callbacks=[averaging, keep]).fit(method, Data(batch_size=16, seed=0))
    assert not torch.equal(vector(method), keep.weights[1])


@pytest.mark.parametrize(
    "averaging",
    [
        lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=2),
        WeightAveraging,
        lambda: EMAWeightAveraging(decay=0.9),
    ],
    ids=["swa", "average", "ema"],
)
def test_averaged_weights_resume_exactly(make_trainer, tmp_path, averaging):
    def fit(callbacks, **kwargs):
        method, data = SimCLR(**SMALL, lr=1e-1), Data(batch_size=16, seed=0)
        options = {"enable_checkpointing": True, "max_epochs": 4, "limit_val_batches": 0}
        make_trainer(callbacks=callbacks, **options).fit(method, data, **kwargs)
        return vector(method)

    class Kill(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:
                raise KeyboardInterrupt

    whole = fit([averaging(), ExactCheckpoint(tmp_path / "whole")])
    with pytest.raises(SystemExit):
        fit([averaging(), ExactCheckpoint(tmp_path / "killed", every_n_train_steps=5), Kill()])
    again = [averaging(), ExactCheckpoint(tmp_path / "killed", every_n_train_steps=5)]
    assert torch.equal(fit(again, ckpt_path="last"), whole)


def test_a_backbone_is_finetuned_late(make_trainer):
    frozen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            frozen.append(not any(p.requires_grad for p in pl_module.backbone.parameters()))

    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    make_trainer(max_epochs=2, callbacks=[tuning, Watch()]).fit(SimCLR(**SMALL), Data(batch_size=16, seed=0))
    assert frozen == [True] * 4 + [False] * 4


def test_weights_are_pruned(make_trainer):
    method = SimCLR(**SMALL)
    make_trainer(callbacks=[ModelPruning("l1_unstructured", amount=0.5)]).fit(method, Data(batch_size=16, seed=0))
    weights = [p for name, p in method.named_parameters() if name.endswith("weight")]
    assert sum(int((p == 0).sum()) for p in weights) > 0.4 * sum(p.numel() for p in weights)


@pytest.mark.parametrize("scaling", ["none", "linear"])
def test_the_rate_that_a_tuner_finds_trains_and_is_on_record(make_trainer, tmp_path, monkeypatch, scaling):
    monkeypatch.chdir(tmp_path)
    method = SimCLR(**SMALL, schedule="constant", lr_scaling=scaling)
    Tuner(make_trainer(max_epochs=30)).lr_find(method, datamodule=Data(batch_size=16), num_training=20, max_lr=0.1)
    keep = Keep()
    make_trainer(callbacks=[keep]).fit(method, Data(batch_size=16))
    assert set(keep.rates) == {method.hparams["lr"]}
    assert method.hparams["lr_scaling"] == "none"


def test_the_rate_that_a_callback_finds_trains(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method, keep = SimCLR(**SMALL, schedule="constant"), Keep()
    finder, logger = LearningRateFinder(num_training_steps=20, max_lr=0.1), CSVLogger(tmp_path)
    trainer = make_trainer(max_epochs=10, callbacks=[finder, keep], logger=logger, log_every_n_steps=1)
    trainer.fit(method, Data(batch_size=16))
    assert keep.rates[-1] == method.hparams["lr"] != 1e-3
    recorded = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert (recorded["lr"], recorded["lr_scaling"]) == (method.hparams["lr"], "none")


def test_the_batch_that_a_callback_finds_trains(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sizes.append(len(batch["image"]))

    data, keep = Data(batch_size=4), Keep()
    finder = BatchSizeFinder(init_val=4, max_trials=2, steps_per_trial=1)
    make_trainer(callbacks=[finder, Watch(), keep]).fit(SimCLR(**SMALL), data)
    assert sizes[-1] == data.batch_size == 8
    assert keep.rates[-8] == pytest.approx(0.3 * 8 / 256)  # and the rate is that of the batch


def test_several_validation_loaders(make_trainer):
    trainer = make_trainer(callbacks=[OnlineLinearProbe(num_classes=4, every_n_steps=1)])
    trainer.fit(SimCLR(**SMALL, spec=SPEC), loader(), [loader(), loader(-torch.ones_like(LABELS))])
    found = {name for name in trainer.callback_metrics if "val" in name}
    assert found == {"val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1", "probe/val_acc"}


def test_evaluation_mode_in_mid_run_is_told_and_undone(make_trainer):
    class Forgetful(Callback):
        modes = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.modes = (*self.modes, pl_module.backbone.training)
            pl_module.eval()

    forgetful = Forgetful()
    with pytest.warns(UserWarning, match="was in evaluation mode in the middle of training"):
        make_trainer(callbacks=[forgetful]).fit(SimCLR(**SMALL), Data(batch_size=16))
    assert all(forgetful.modes)


@pytest.mark.parametrize(("frozen", "told"), [(False, True), (True, False)])
def test_a_part_in_evaluation_mode_is_told_unless_it_is_frozen(make_trainer, recwarn, frozen, told):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.backbone.eval().requires_grad_(not frozen)

    make_trainer(callbacks=[Freeze()]).fit(SimCLR(**SMALL), Data(batch_size=16))
    found = [str(entry.message) for entry in recwarn if "in evaluation mode while" in str(entry.message)]
    assert len(found) == told
    assert not told or "trained: backbone. Their" in found[0]


def test_accumulation_that_changes_in_mid_run_is_refused(make_trainer):
    with pytest.raises(ValueError, match="GradientAccumulationScheduler would change the global batch"):
        make_trainer(callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})]).fit(SimCLR(**SMALL), Data(batch_size=16))


def test_a_method_without_a_spec_says_what_it_needs():
    with pytest.raises(ValueError, match=r"spec is needed .*SimCLR\(spec=ImageSpec"):
        SimCLR(**SMALL).represent(IMAGES)


def test_a_method_that_was_loaded_trains_without_a_word(make_trainer, tmp_path, recwarn):
    trainer = make_trainer()
    trainer.fit(SimCLR(**SMALL), Data(batch_size=16))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    method = SimCLR.load_from_checkpoint(tmp_path / "a.ckpt")
    assert not method.training
    make_trainer().fit(method, Data(batch_size=16))
    assert method.backbone.training
    assert not any("in the middle of training" in str(entry.message) for entry in recwarn)


def test_networks_that_are_not_there_yet_are_told():
    method = SimCLR(**SMALL, spec=SPEC)
    for name in ("backbone", "projector"):
        with pytest.raises(AttributeError, match=rf"'{name}'; networks are built .* configure_model\(\)"):
            getattr(method, name)
    method.configure_model()
    with pytest.raises(AttributeError, match=r"no attribute 'projektor'$"):
        method.projektor  # noqa: B018


# The probe, on data of all kinds


class Own(LightningDataModule):
    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


def probed(make_trainer, *data, **kwargs):
    trainer = make_trainer(callbacks=[OnlineLinearProbe(every_n_steps=1, **kwargs)])
    trainer.fit(SimCLR(**SMALL, spec=SPEC), *data)
    return {name for name in trainer.callback_metrics if "acc" in name}


def test_a_data_module_of_ones_own_is_like_its_loaders(make_trainer):
    expected = {"probe/train_acc", "probe/val_acc"}
    assert probed(make_trainer, loader(), loader(), num_classes=4) == expected
    assert probed(make_trainer, Own(), num_classes=4) == expected


def test_labels_by_the_name_of_hugging_face(make_trainer):
    rows = [{"image": IMAGES[i], "labels": i % 4} for i in range(32)]
    data = DataLoader(rows, batch_size=8)
    assert probed(make_trainer, data, data, num_classes=4) == {"probe/train_acc", "probe/val_acc"}


def test_a_label_that_is_no_class_is_told(make_trainer):
    with pytest.raises(ValueError, match=r"a label is 3, the probe has num_classes=3"):
        probed(make_trainer, loader(), num_classes=3)


def test_a_label_of_validation_that_is_no_class_is_told(make_trainer):
    with pytest.raises(ValueError, match=r"a label is 7, the probe has num_classes=4"):
        probed(make_trainer, loader(), loader(LABELS + 4), num_classes=4)


def test_an_epoch_without_a_label_is_told(make_trainer):
    with pytest.warns(UserWarning, match="'probe' met no label in this epoch"):
        probed(make_trainer, loader(-torch.ones_like(LABELS)), num_classes=4)


@pytest.mark.parametrize("kind", [OnlineKNN, SummaryTable])
def test_a_second_callback_that_writes_the_same_names_is_refused(make_trainer, kind):
    with pytest.raises(ValueError, match=rf"2 {kind.__name__} of one run would write .*: leave all but one out"):
        make_trainer(callbacks=[kind(), kind()]).fit(SimCLR(**SMALL), Data(batch_size=16))


def test_two_probes_of_different_names(make_trainer, tmp_path):
    probes = [OnlineLinearProbe(every_n_steps=1), OnlineLinearProbe(every_n_steps=1, lr=0.1, name="fast")]
    trainer = make_trainer(callbacks=probes)
    trainer.fit(SimCLR(**SMALL), Data(batch_size=16))
    assert {"probe/val_acc", "fast/val_acc"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = [OnlineLinearProbe(every_n_steps=1), OnlineLinearProbe(every_n_steps=1, lr=0.1, name="fast")]
    make_trainer(callbacks=again).validate(SimCLR(**SMALL), Data(batch_size=16), ckpt_path=tmp_path / "a.ckpt")
    for old, new in zip(probes, again, strict=True):
        assert torch.equal(old.probe.weight, new.probe.weight)
    with pytest.raises(ValueError, match=r"2 OnlineLinearProbe of one run would write under the same names"):
        make_trainer(callbacks=[OnlineLinearProbe(lr=0.1), OnlineLinearProbe(lr=0.2)]).fit(
            SimCLR(**SMALL), Data(batch_size=16)
        )


def test_messages_reach_the_log(caplog, make_trainer):
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        make_trainer().fit(SimCLR(**SMALL), Data(batch_size=16))
    assert "64 images to train on, 16 held out" in caplog.text
