"""How many images a second a training step takes in on a GPU, beside the field.

    python benchmarks/gpu_step.py --json gpu_step.json

SimCLR under ``lightning.Trainer.fit`` in ``bf16-mixed``, from uint8 images in the host's memory, by the three that do
the same work in ``train_step.py``:

- ``quickstart_28``: the small convolutional net of ``configs/quickstart.yaml`` on 28 x 28 gray images, batches of 256;
- ``resnet18_32``: ResNet-18 with SimCLR's stem for CIFAR on 32 x 32 RGB images, batches of 512;
- ``resnet50_224``: ResNet-50 on 224 x 224 RGB images, blur at .5, batches of 128.

lit_ssl loads in the process that trains. lightly and stable-pretraining have a worker process for each core but one
(``--workers``), and stable-pretraining the faster of its two kinds of views, of which one is made on the GPU, too. A
row of its own says what a step takes without Lightning, loading and views: our loss on one batch again and again.

Fits take turns. The clock of a fit starts after a number of steps in which the workers' queues, full at first, run
down to what the workers can keep up with, and stops at the end of its last step; the GPU has finished both times. No
fit comes to the end of its images, so that no worker waits for an epoch to begin.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import statistics
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from peers import Case, Contender, contenders, pixels, trainer
from train_step import QUICKSTART
from views import machine

from lit_ssl import ImageSpec

CASES = {
    "quickstart_28": Case("convnet", ImageSpec(28, channels=1), 256, 120, 3, QUICKSTART),
    "resnet18_32": Case("resnet18", ImageSpec(32), 512, 80, 3),
    "resnet50_224": Case("resnet50", ImageSpec(224), 128, 40, 2, blur=0.5),
}
ALONE = "lit_ssl, one batch again and again"


class Clock(Callback):
    """Seconds of the last ``steps`` steps of a fit, and its first batch."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0
        self.losses: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch if batch_idx == 0 else self.batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())
        if trainer.global_step in (trainer.max_steps - self.steps, trainer.max_steps):
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds


def fit(one: Contender, case: Case, warm: int) -> tuple[float, Any]:
    """Images a second, and a batch, on the host."""
    clock = Clock(case.steps)
    trainer(warm + case.steps, True, clock, accelerator="gpu").fit(one.module, **one.data)
    one.losses += torch.stack(clock.losses).tolist()
    return case.batch * case.steps / clock.seconds, move_data_to_device(clock.batch, torch.device("cpu"))


def alone(one: Contender, case: Case, batch: Any) -> float:
    """Images a second of steps of our method, by torch's AdamW, on views that are on the GPU."""
    module, batch = copy.deepcopy(one.module).to("cuda"), move_data_to_device(batch, torch.device("cuda"))
    optimizer = torch.optim.AdamW(module.parameters(), case.lr)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for steps in (10, case.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    return case.batch * case.steps / (time.perf_counter() - begin)


def compare(name: str, case: Case, workers: int) -> tuple[dict[str, float], list[str]]:
    """Images a second by library, and rows that prove the work. Prints as it goes.

    Raises:
        RuntimeError: views have other shapes, backbones other parameters, a loss is not finite, or that of the
            quickstart's net does not fall.
    """
    warm = 2 * workers + 10  # as many batches as may wait for the first step, and some
    data = pixels(case)
    data = data.repeat(-(-(warm + case.steps + 1) * case.batch // len(data)), 1, 1, 1)
    turns, rows, first, views = contenders(case, False, data, (workers,), pin=True), [], {}, None
    for one in turns:
        first[one.name], batch = fit(one, replace(case, steps=10), warm)
        rows.append(one.work(batch))
        views = batch if one.name == "lit_ssl" else views
    if len({(row.split(" | ")[1], row.split(" | ")[4]) for row in rows}) > 1:
        raise RuntimeError(f"not the same work: {rows}")
    kinds = [key for key in first if key.startswith("stable")]
    slower = min(kinds, key=lambda key: first[key])
    turns = [one for one in turns if one.name != slower]
    rates: dict[str, list[float]] = {one.name: [] for one in turns} | {ALONE: []}
    for _ in range(case.rounds):
        for one in turns:
            rates[one.name].append(fit(one, case, warm)[0])
        rates[ALONE].append(alone(turns[0], case, views))
    result: dict[str, float] = {}
    for one in turns:
        third = len(one.losses) // 3
        falls = statistics.mean(one.losses[-third:]) < statistics.mean(one.losses[:third])
        if not all(map(math.isfinite, one.losses)) or (case.options and not falls):  # others take too few steps
            raise RuntimeError(f"{one.name}: the loss of {name} does not fall: {one.losses}")
        result[one.library] = statistics.median(rates[one.name])
    for label, rate in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["lit_ssl"], rate, strict=True))
        spread = f"{statistics.median(rate):,.0f} [{min(rate):,.0f}, {max(rate):,.0f}]"
        print(f"| {name} | {label} | {spread} | {ratio:.2f} |", flush=True)
    return result, [f"| {name} | {row} |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    parser.add_argument("--workers", type=int, default=max(1, cores - 1), help="of the peers (default: cores - 1)")
    parser.add_argument("--json", type=Path, help="write images a second of each case and library here")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_step.py needs a GPU; train_step.py does the same on a CPU")
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    gpu = f"{torch.cuda.get_device_name()}, {cores} cores"
    print(f"{gpu}; {machine()}, lightning {version('lightning')}\n", flush=True)
    print("| case | library | images/s | ratio of lit_ssl |\n|---|---|---|---|", flush=True)
    medians, proof = {}, []
    for name in a.cases:
        medians[name], rows = compare(name, CASES[name], a.workers)
        proof += rows
    print("\n| case | library | views | mean | std | backbone | projector |\n|---|---|---|---|---|---|---|")
    print("\n".join(proof))
    if a.json:
        a.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
