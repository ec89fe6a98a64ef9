"""Sharded over two processes, each method takes the steps that it takes under DDP, and resumes from its checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from fits import run, values
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from methods import SHARDED

import lit_ssl
from lit_ssl.sharding import shard

pytestmark = pytest.mark.slow

STEPS, SAVED = 4, 2
OFF = ["--trainer.enable_checkpointing", "false"]


def arguments(method, *more):
    run = [*SHARDED[method], *more, "--data.batch_size", "16", "--data.num_workers", "0", "--trainer.devices", "2"]
    run += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", STEPS, "--trainer.limit_val_batches", "1"]
    return [*run, "--trainer.precision", "32-true"]  # the strategy has no 64-true; fits.py makes weights of float64


@pytest.fixture(scope="module")
def fitted(request, tmp_path_factory):
    """(rows of metrics.csv, what the fit ended with) by way and method; one start of processes for all."""
    root = tmp_path_factory.mktemp("sharded")
    methods = dict.fromkeys(
        item.callspec.params["method"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    )
    plan = {}
    for name in methods:
        sharded = arguments(name, "--config", "trainer/fsdp")
        save = ["--checkpoint.every_n_train_steps", str(SAVED), "--checkpoint.dirpath", root / f"saved-{name}"]
        save += ["--checkpoint.filename", "{step}", "--checkpoint.save_top_k", "-1"]
        resume = ["--ckpt_path", root / f"saved-{name}" / f"step={SAVED}.ckpt"]
        plan[root / f"ddp-{name}"] = [*arguments(name), "--trainer.strategy", "ddp", *OFF]
        plan[root / f"sharded-{name}"] = [*sharded, *save]
        plan[root / f"resumed-{name}"] = [*sharded, *resume, *OFF]
    return {folder.name: fit for folder, fit in run(plan, 2, double=True).items()} | {"root": root}


@pytest.mark.parametrize("method", SHARDED)
def test_sharded_steps_are_those_of_ddp(method, fitted):
    (whole_rows, whole), (rows, sharded) = fitted[f"ddp-{method}"], fitted[f"sharded-{method}"]
    assert whole["world"] == sharded["world"] == 2
    assert not whole["sharded"]
    kept = {name for name in sharded["parameters"] if name not in sharded["sharded"]}
    assert kept <= {"logit_scale", "logit_bias"}  # single numbers
    losses = values(whole_rows, "train/loss")
    assert len(losses) == STEPS
    assert values(rows, "train/loss") == pytest.approx(losses, rel=1e-10)
    assert values(rows, "val/loss") == pytest.approx(values(whole_rows, "val/loss"), rel=1e-10)
    assert whole["state"].keys() == sharded["state"].keys()
    assert sharded["unlike"] == []


@pytest.mark.parametrize("method", SHARDED)
def test_a_sharded_run_resumes_from_its_checkpoint(method, fitted):
    (rows, sharded), (resumed_rows, resumed) = fitted[f"sharded-{method}"], fitted[f"resumed-{method}"]
    assert values(resumed_rows, "train/loss") == values(rows, "train/loss")[SAVED:]
    assert all(torch.equal(resumed["state"][name], weight) for name, weight in sharded["state"].items())


@pytest.mark.parametrize("method", SHARDED)
def test_its_checkpoint_is_one_file_that_loads_without_sharding(method, fitted):
    path = fitted["root"] / f"saved-{method}" / f"step={SAVED}.ckpt"
    assert path.is_file()
    assert b"lit-ssl sha256" in path.read_bytes()[-100:]
    name = torch.load(path, weights_only=True)["class_path"].rpartition(".")[2]
    module = getattr(lit_ssl, name).load_from_checkpoint(path)
    assert module.state_dict().keys() == fitted[f"sharded-{method}"][1]["state"].keys()


def test_what_cannot_be_sharded_is_named():
    method = torch.nn.Module()
    method.scale = torch.nn.Parameter(torch.zeros(3))
    for processes, message in ((2, "tensor_parallel_size must be 1, got 2"), (1, r"Module.scale, .* of shape \(3,\)")):
        dimension = SimpleNamespace(size=lambda n=processes: n)
        with pytest.raises(MisconfigurationException, match=message):
            shard(method, {"tensor_parallel": dimension, "data_parallel": dimension})
