import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl.callbacks import OnlineLinearProbe
from lit_ssl.callbacks.accuracy import LabelledAccuracy
from lit_ssl.callbacks.probe import _Probe


def rows(n=12, features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator) * 3 + 2
    return x, torch.randint(classes, (n,), generator=generator)


def probe_of(x, classes=3):
    probe = _Probe(x.shape[1], classes, torch.device("cpu"))
    torch.manual_seed(0)
    torch.nn.init.normal_(probe.weight)
    torch.nn.init.normal_(probe.bias)
    probe.observe(x)
    return probe


def test_the_written_out_gradient_is_autograds():
    x, label = rows()
    label[::3] = -1
    probe = probe_of(x)
    torch.nn.functional.cross_entropy(probe(x), label, ignore_index=-1).backward()
    expected = probe.weight.grad.clone(), probe.bias.grad.clone()
    logits = probe.differentiate(x, label)
    torch.testing.assert_close((probe.weight.grad, probe.bias.grad), expected)
    torch.testing.assert_close(logits, probe(x))


def test_unlabelled_rows_alone_give_no_gradient():
    x, label = rows()
    probe = probe_of(x)
    probe.differentiate(x, label * 0 - 1)
    assert not probe.weight.grad.any()
    assert not probe.bias.grad.any()


def test_statistics_are_those_of_all_rows_seen_so_far():
    parts = [rows(seed=s)[0] + s for s in range(10)]
    probe = _Probe(5, 3, torch.device("cpu"))
    for part in parts:
        probe.observe(part)
    whole = torch.cat(parts)
    torch.testing.assert_close(probe.mean, whole.mean(0))
    torch.testing.assert_close(probe.var, whole.var(0, correction=0))


def _step(rank, world):
    x, label = rows(13)
    label[::4] = -1
    share = slice(0, 9) if rank == 0 else slice(9, None)  # unequal, and with different labels
    probe = _Probe(5, 3, torch.device("cpu"))
    probe.observe(x[share])
    probe.differentiate(x[share], label[share])
    return {"mean": probe.mean, "var": probe.var, "weight": probe.weight.grad, "bias": probe.bias.grad}


@pytest.mark.slow
def test_two_ranks_learn_the_probe_of_one():
    x, label = rows(13)
    label[::4] = -1
    probe = _Probe(5, 3, torch.device("cpu"))
    probe.observe(x)
    probe.differentiate(x, label)
    expected = {"mean": probe.mean, "var": probe.var, "weight": probe.weight.grad, "bias": probe.bias.grad}
    for found in run_ranks(_step, 2):
        torch.testing.assert_close(found, expected)


def test_accuracy_ignores_rows_without_a_label():
    metric = LabelledAccuracy()
    metric.update(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, -1]))
    metric.update(torch.tensor([2, 2]), torch.tensor([-1, 2]))
    assert metric.compute() == 3 / 4
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([-1]))
    assert metric.compute().isnan()


def test_it_learns_what_the_encoder_sees(method, stripes, make_trainer):
    probe = OnlineLinearProbe(every_n_steps=1, lr=0.03)
    trainer = make_trainer(max_epochs=15, callbacks=[probe], log_every_n_steps=1)
    trainer.fit(method(lr=1e-5), datamodule=stripes())
    assert trainer.callback_metrics["probe/val_acc"] > 0.7
    assert trainer.callback_metrics["probe/train_acc"] > 0.7


def test_validation_accuracy_is_the_probes_over_all_held_out_images(method, stripes, make_trainer):
    probe, module, data = OnlineLinearProbe(every_n_steps=1), method(), stripes()
    trainer = make_trainer(max_epochs=2, callbacks=[probe])
    trainer.fit(module, datamodule=data)
    held = data.val_set
    predicted = probe.probe(module.represent(held.images)).argmax(1)
    expected = (predicted == held.labels).float().mean()
    assert trainer.callback_metrics["probe/val_acc"] == pytest.approx(float(expected))


@pytest.mark.parametrize(("every", "acted"), [(1, 8), (2, 4), (3, 3)])
def test_it_acts_on_the_fraction_of_steps_asked_for(every, acted, method, stripes, make_trainer):
    probe = OnlineLinearProbe(every_n_steps=every)
    make_trainer(max_epochs=2, callbacks=[probe]).fit(method(), datamodule=stripes())
    assert probe.probe.updates == acted
    assert probe.batches == 8


def test_labelled_images_apart_are_drawn_by_seed_and_step(method, stripes, make_trainer):
    states = []
    for batch_size, seed in ((16, 0), (16, 0), (16, 1)):
        probe = OnlineLinearProbe(every_n_steps=1, batch_size=batch_size, seed=seed)
        trainer = make_trainer(max_epochs=2, callbacks=[probe])
        trainer.fit(method(), datamodule=stripes("apart"))
        states.append(probe.probe.weight.detach())
        assert "probe/val_acc" in trainer.callback_metrics
    assert states[0].any()
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_resumed_probe_is_the_uninterrupted_one(method, stripes, make_trainer, tmp_path):
    whole = OnlineLinearProbe(every_n_steps=3)
    make_trainer(max_epochs=4, callbacks=[whole]).fit(method(schedule="constant"), datamodule=stripes())

    saver = ModelCheckpoint(tmp_path, save_last=True)
    first = OnlineLinearProbe(every_n_steps=3)
    trainer = make_trainer(max_epochs=2, callbacks=[first, saver], enable_checkpointing=True)
    trainer.fit(method(schedule="constant"), datamodule=stripes())
    second = OnlineLinearProbe(every_n_steps=3)
    path = tmp_path / "last.ckpt"
    trainer = make_trainer(max_epochs=4, callbacks=[second])
    trainer.fit(method(schedule="constant"), datamodule=stripes(), ckpt_path=path, weights_only=True)

    assert second.batches == 16
    for (name, expected), found in zip(
        whole.probe.state_dict().items(), second.probe.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name
    for a, b in zip(whole.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_validate_uses_the_probe_of_the_checkpoint(method, stripes, make_trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(max_epochs=3, callbacks=[OnlineLinearProbe(lr=0.03), saver], enable_checkpointing=True)
    trainer.fit(method(), datamodule=stripes())
    expected = trainer.callback_metrics["probe/val_acc"]
    later = make_trainer(callbacks=[OnlineLinearProbe()])
    (found,) = later.validate(method(), datamodule=stripes(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert found["probe/val_acc"] == expected


def test_validate_without_a_trained_probe_claims_nothing(method, stripes, make_trainer):
    (found,) = make_trainer(callbacks=[OnlineLinearProbe()]).validate(method(), datamodule=stripes(), verbose=False)
    assert "val/loss" in found
    assert "probe/val_acc" not in found


def test_a_probe_of_another_shape_is_refused(method, stripes, make_trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(callbacks=[OnlineLinearProbe(), saver], enable_checkpointing=True)
    trainer.fit(method(), datamodule=stripes())
    again = make_trainer(max_epochs=2, callbacks=[OnlineLinearProbe(num_classes=9)])
    with pytest.raises(ValueError, match=r"probe has shape \(4, \d+\) .* this run needs \(9, \d+\)"):
        again.fit(method(), datamodule=stripes(), ckpt_path=tmp_path / "last.ckpt")


def test_a_plain_loader_needs_the_number_of_classes(method, images, spec, make_trainer):
    labels = torch.arange(64) % 3
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    with pytest.warns(UserWarning, match=re.escape("OnlineLinearProbe(num_classes=...)")):
        make_trainer(callbacks=[probe := OnlineLinearProbe()]).fit(method(spec=spec), loader, loader)
    assert probe.probe is None
    trainer = make_trainer(callbacks=[OnlineLinearProbe(num_classes=3)])
    trainer.fit(method(spec=spec), loader, loader)
    assert "probe/val_acc" in trainer.callback_metrics


def test_it_does_not_act_in_the_sanity_check(method, stripes, make_trainer):
    class Look(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            self.seen = set(trainer.callback_metrics)

    look = Look()
    trainer = make_trainer(callbacks=[OnlineLinearProbe(), look], num_sanity_val_steps=2)
    trainer.fit(method(), datamodule=stripes())
    assert "val/loss" in look.seen
    assert "probe/val_acc" not in look.seen
    assert "probe/val_acc" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer of at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be an integer of at least 2 or None, got 1"),
        ({"lr": 0}, "lr must be a finite number above 0, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0, got -1.0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineLinearProbe(**arguments)
