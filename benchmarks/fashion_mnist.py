"""What pretraining buys on Fashion-MNIST in a given wall time: our methods beside raw pixels and an untrained encoder.

    python benchmarks/fashion_mnist.py --method all --minutes 10 --root DIR --json F

Every method has the same backbone, batch and wall time, and tries the same number of learning rates. A trial trains on
the first 50,000 training images for ``--trial-minutes`` and is judged by the linear probe on the other 10,000; the best
learning rate then trains on all 60,000 for ``--minutes``. The 10,000 test images are read once, by the final table. The
learning rate falls on a cosine over the wall time, so that every run ends with its schedule, however fast the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

import lit_ssl
from lit_ssl import MoCo, SimCLR, SSLModule
from lit_ssl.datamodules import FashionMNIST, ImageTensors
from lit_ssl.evaluation import evaluate, linear_probe
from lit_ssl.views import SimCLRViews

BACKBONE = {
    "backbone": "convnet",
    "backbone_options": {"width": 32, "stages": 2, "stem_stride": 2, "grid": 3},
    "channels_last": True,
    "optimizer": "adamw",
    "weight_decay": 1e-4,
}
VIEWS = {"scale": (0.4, 1.0), "colour": (0.4, 0.4, 0.0, 0.0), "strength": 1.0}

METHODS: dict[str, tuple[Callable[..., SSLModule], tuple[float, ...]]] = {
    "simclr": (lambda **k: SimCLR(views=SimCLRViews(**VIEWS), **k), (2e-3, 4e-3, 8e-3)),
    "moco": (lambda **k: MoCo(views=SimCLRViews(**VIEWS), queue_size=8192, momentum=0.99, **k), (2e-3, 4e-3, 8e-3)),
    "simclr_hard": (
        lambda **k: SimCLR(views=SimCLRViews(**VIEWS), beta=1.0, tau_plus=0.1, **k),
        (2e-3, 4e-3, 8e-3),
    ),
}


class WallClock(Callback):
    """Ends training after a wall time, and lets the learning rate warm up and fall over it."""

    def __init__(self, seconds: float, warmup: float = 0.05) -> None:
        self.seconds, self.warmup, self.steps = seconds, warmup, 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = time.monotonic()
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        scheduler.lr_lambdas = [lambda step: self.factor()] * len(scheduler.lr_lambdas)  # type: ignore[union-attr]

    def factor(self) -> float:
        done = min(1.0, (time.monotonic() - self.start) / self.seconds)
        if done < self.warmup:
            return max(done / self.warmup, 0.01)
        return (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps = trainer.global_step
        if time.monotonic() - self.start >= self.seconds:
            trainer.should_stop = True


def train(method: SSLModule, data: FashionMNIST, seconds: float) -> WallClock:
    clock = WallClock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=100_000,
            accelerator="cpu",
            devices=1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=folder,
        ).fit(method, data)
    return clock


def features(method: SSLModule, images: Tensor) -> Tensor:
    return torch.cat([method.represent(part) for part in images.split(1000)])


def data_for(root: str, seed: int, rows: slice = slice(None)) -> FashionMNIST:
    data = FashionMNIST(root, seed=seed)
    data.prepare_data()
    data.setup()
    full = data.train_set
    data.train_set = data.labelled_set = ImageTensors(full.images[rows], full.labels[rows])
    return data


def trials(
    build: Callable[..., SSLModule], rates: tuple[float, ...], root: str, minutes: float
) -> list[dict[str, float]]:
    data, held = data_for(root, 0, slice(50_000)), data_for(root, 0, slice(50_000, None)).train_set
    tried = []
    for lr in rates:
        method = build(lr=lr, seed=0, **BACKBONE)
        train(method, data, minutes * 60)
        x, y = data.train_set.images[:10_000], data.train_set.labels[:10_000]
        score = linear_probe(features(method, x), y, features(method, held.images), held.labels)
        tried.append({"lr": lr, "linear": score})
        print(f"  trial lr={lr:g}: linear probe on held-out training images {score:.4f}", flush=True)
    return tried


def scores(data: FashionMNIST, encode: Callable[[Tensor], Tensor]) -> dict[str, float]:
    train_set, test = data.train_set, data.val_set
    result = evaluate(encode(train_set.images), train_set.labels, encode(test.images), test.labels)
    return {
        "knn": result.knn,
        "linear": result.linear,
        "ten_labels": result.ten_labels,
        "ten_labels_se": result.ten_labels_se,
    }


def row(name: str, s: dict[str, float], note: str = "") -> str:
    return (
        f"| {name} | {s['knn']:.3f} | {s['linear']:.3f} | {s['ten_labels']:.3f} ± {s['ten_labels_se']:.3f} | {note} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=["all"], choices=[*METHODS, "all"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trial-minutes", type=float, default=None, help="default: a fifth of --minutes")
    parser.add_argument("--root", required=True, help="folder that holds FashionMNIST/raw, as torchvision lays it out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    names = list(METHODS) if "all" in arguments.method else arguments.method
    trial_minutes = arguments.trial_minutes or arguments.minutes / 5
    result: dict[str, Any] = {
        "minutes": arguments.minutes,
        "trial_minutes": trial_minutes,
        "threads": 2,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "lit_ssl": lit_ssl.__version__},
        "methods": {},
    }

    def save() -> None:
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")

    data = data_for(arguments.root, 0)
    print("raw pixels and untrained encoder", flush=True)
    result["raw_pixels"] = scores(data, lambda images: images.flatten(1).float() / 255)
    untrained = SimCLR(spec=data.spec, seed=0, **BACKBONE)
    untrained.configure_model()
    result["untrained"] = scores(data, lambda images: features(untrained, images))
    save()
    for name in names:
        build, rates = METHODS[name]
        print(name, flush=True)
        tried = trials(build, rates, arguments.root, trial_minutes)
        best = max(tried, key=lambda t: t["linear"])["lr"]
        entry: dict[str, Any] = {"trials": tried, "lr": best, "runs": []}
        result["methods"][name] = entry
        for seed in arguments.seeds:
            data, method = data_for(arguments.root, seed), build(lr=best, seed=seed, **BACKBONE)
            start = time.monotonic()
            clock = train(method, data, arguments.minutes * 60)
            minutes = (time.monotonic() - start) / 60
            run = {"seed": seed, "steps": clock.steps, "minutes": minutes}
            run |= scores(data, lambda images, method=method: features(method, images))
            entry["runs"].append(run)
            save()
            print(f"  seed {seed}: {run}", flush=True)

    print(f"\nFashion-MNIST, {arguments.minutes:g} minutes on two threads, 60,000 training and 10,000 test images\n")
    print("| encoder | kNN | linear | ten labels a class | |\n|---|---|---|---|---|")
    print(row("raw pixels", result["raw_pixels"]))
    print(row("untrained", result["untrained"]))
    for name, entry in result["methods"].items():
        tried = ", ".join(f"{t['lr']:g}: {t['linear']:.3f}" for t in entry["trials"])
        for run in entry["runs"]:
            note = f"seed {run['seed']}, lr {entry['lr']:g} of {{{tried}}}, {run['steps']} steps"
            print(row(name, run, note))
    save()


if __name__ == "__main__":
    main()
