"""Law 1: with the same global batch, one process and two give the same losses and weights, up to float error.

All methods are fitted in one start of processes for each number of processes (``fits.py``).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fits import COMMON, result, run, values
from methods import METHODS, UNCOUPLED, VARIANTS

pytestmark = pytest.mark.slow

STEPS, BATCH = 100, 64
DOUBLE, SINGLE = "64-true", "32-true"


def steps_of(name):
    """Fewer for further settings of a method."""
    return 40 if name in VARIANTS else STEPS


def arguments(method, processes, precision=DOUBLE, accumulate=1, steps=STEPS):
    rows = BATCH // processes // accumulate
    run = [*method, "--data.batch_size", str(rows), "--data.num_workers", "0", "--trainer.precision", precision]
    run += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"]
    run += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(steps * accumulate)]
    run += ["--trainer.limit_val_batches", "2", "--trainer.accumulate_grad_batches", str(accumulate)]
    return [*run, "--trainer.enable_checkpointing", "false"]


@pytest.fixture(scope="module")
def fitted(request, tmp_path_factory):
    """(rows of metrics.csv, what the fit ended with) by (test's name, method, processes), of all selected tests."""
    root = tmp_path_factory.mktemp("fits")
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    plans = {1: {}, 2: {}}
    for item in here:
        name = item.callspec.params["method"]
        if item.originalname == "test_accumulating_is_a_larger_batch":
            for parts in (1, 2):
                plans[1][root / f"{parts}-{name}"] = arguments(UNCOUPLED[name], 1, accumulate=parts)
            continue
        precision = SINGLE if "float32" in item.originalname else DOUBLE
        for processes, plan in plans.items():
            plan[root / f"{precision}-{name}-{processes}"] = arguments(
                METHODS[name], processes, precision, steps=steps_of(name)
            )
    found = {}
    for processes, plan in plans.items():
        if plan:
            found |= {folder.name: fit for folder, fit in run(plan, processes).items()}
    return found


def alike(one, two):
    """Final weights, buffers, queues and running statistics, up to float64's rounding."""
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(method, fitted):
    (rows_one, one), (rows_two, two) = (fitted[f"{DOUBLE}-{method}-{processes}"] for processes in (1, 2))
    assert (one["world"], two["world"]) == (1, 2)
    losses = values(rows_one, "train/loss")
    assert len(losses) == one["steps"] == two["steps"] == steps_of(method)
    assert len({round(loss, 6) for loss in losses}) > len(losses) // 2  # it does train
    assert values(rows_two, "train/loss") == pytest.approx(losses, rel=1e-8)
    assert values(rows_two, "val/loss") == pytest.approx(values(rows_one, "val/loss"), rel=1e-8)
    alike(one["state"], two["state"])


@pytest.mark.parametrize("method", METHODS)
def test_ranks_end_with_the_same_bits(method, fitted):
    """Weights, the copy that follows them, the queue and its order, running statistics."""
    assert fitted[f"{DOUBLE}-{method}-2"][1]["unlike"] == []


@pytest.mark.parametrize("method", [name for name in METHODS if name not in VARIANTS])
def test_in_float32_only_rounding_grows(method, fitted):
    (rows_one, one), (rows_two, two) = (fitted[f"{SINGLE}-{method}-{processes}"] for processes in (1, 2))
    losses = values(rows_one, "train/loss")
    assert len(losses) == STEPS
    assert values(rows_two, "train/loss") == pytest.approx(losses, rel=1e-3)
    # All weights as one vector: AdamW makes steps of full length out of gradients that are 0 up to rounding.
    names = [name for name, weight in one["state"].items() if weight.is_floating_point()]
    whole, other = (
        torch.cat([state[name].double().flatten() for name in names]) for state in (one["state"], two["state"])
    )
    assert (other - whole).norm() <= 1e-3 * whole.norm()


@pytest.mark.parametrize("method", UNCOUPLED)
def test_accumulating_is_a_larger_batch(method, fitted):
    (whole_rows, whole), (parts_rows, parts) = fitted[f"1-{method}"], fitted[f"2-{method}"]
    assert whole["steps"] == parts["steps"] == STEPS
    alike(whole["state"], parts["state"])
    # What is logged is the loss of a part: the runs did differ in their batches.
    assert values(parts_rows, "train/loss")[-1] != pytest.approx(values(whole_rows, "train/loss")[-1], rel=1e-8)


@pytest.mark.parametrize("method", ["simclr"])
def test_the_installed_command_starts_its_own_processes(method, fitted, tmp_path):
    binary = Path(sys.executable).parent / "lit-ssl"
    more = [*COMMON, "--trainer.default_root_dir", tmp_path, "--trainer.callbacks+", "fits.FinalState"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [binary, "fit", *arguments(METHODS[method], 2), *more],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows, final = result(tmp_path)
    expected_rows, expected = fitted[f"{DOUBLE}-{method}-2"]
    assert final["world"] == 2
    assert values(rows, "train/loss") == values(expected_rows, "train/loss")
    assert all(torch.equal(final["state"][name], weight) for name, weight in expected["state"].items())
