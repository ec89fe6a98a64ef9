"""Law 3 for the callbacks of image-text methods, and the same metrics on one process and on two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from towers import Towers, shapes

from lit_ssl.callbacks import ImageTextRetrieval, ZeroShot

METRICS = {f"retrieval/{way}_{what}" for way in ("i2t", "t2i") for what in ("r1", "r5", "median_rank")}


def run(make_trainer, callbacks):
    torch.manual_seed(7)
    module = Towers(lr=1e-2)  # whose dropout draws from the global generator
    trainer = make_trainer(max_epochs=2, val_check_interval=2, callbacks=callbacks)
    trainer.fit(module, datamodule=shapes())
    return module, trainer, torch.rand(3)


def test_weights_are_bit_identical_with_and_without_callbacks(make_trainer):
    alone, _, plain_draws = run(make_trainer, [])
    watched, trainer, draws = run(make_trainer, [ImageTextRetrieval(), ZeroShot()])
    assert alone.state_dict().keys() == watched.state_dict().keys()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert torch.equal(draws, plain_draws)
    assert [module.training for module in alone.modules()] == [module.training for module in watched.modules()]
    assert METRICS | {"zero_shot/val_acc"} <= set(trainer.callback_metrics)


def test_the_law_would_catch_a_callback_that_moves_a_weight(make_trainer):
    class Meddler(ImageTextRetrieval):
        def on_validation_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                next(pl_module.parameters()).add_(1e-7)

    alone, _, _ = run(make_trainer, [])
    meddled, _, _ = run(make_trainer, [Meddler()])
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), meddled.parameters(), strict=True))


@pytest.mark.slow
def test_one_process_and_two_find_the_same(tmp_path):
    found = {}
    for devices in (1, 2):
        script = Path(__file__).with_name("towers.py")
        command = [sys.executable, script, tmp_path / f"{devices}.json", str(devices)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found[devices] = json.loads((tmp_path / f"{devices}.json").read_text())
    assert METRICS | {"zero_shot/val_acc", "retrieval/chance_r1"} <= set(found[1])
    for name in found[1]:
        if name.startswith(("retrieval/", "zero_shot/")):
            assert found[2][name] == pytest.approx(found[1][name], abs=1e-6), name
