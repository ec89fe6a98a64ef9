"""What pretraining buys on Fashion-MNIST in a given time: our methods beside raw pixels and an untrained encoder.

    python benchmarks/fashion_mnist.py --method all --minutes 10 --seeds 0 1 --root DIR --json F

Every method has the same small convolutional backbone, batch and time, and tries the same number of learning rates. A
trial trains on the first 50,000 training images for ``--trial-minutes`` and is judged by the linear probe on the other
10,000; the best learning rate then trains on all 60,000 for ``--minutes``, once with each seed. The 10,000 test images
are read once, by the final table. The learning rate falls on a cosine over the time given, so that every run ends with
its schedule, however fast the machine. CLIP is left out: it needs captions.

Two runs go side by side, one thread each (``--jobs``, ``--threads``). ``--clock cpu`` counts the time a run computed
instead of the time that went by: the same on an idle machine, and fair on a busy one. Runs that the file F holds are
kept, so that a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import lightning
import torch
from results import Results
from torch import Tensor
from wall_clock import CLOCKS, WallClock, bare_trainer

import lit_ssl
from lit_ssl import MAE, MCL, VAE, Fusion, LeJEPA, MoCo, SimCLR, SSLModule
from lit_ssl.datamodules import FashionMNIST, ImageTensors
from lit_ssl.evaluation import evaluate, linear_probe
from lit_ssl.views import MAEViews, SimCLRViews

BACKBONE = {
    "backbone": "convnet",
    "backbone_options": {"width": 32, "stages": 2, "stem_stride": 2, "grid": 3},
    "channels_last": True,
    "optimizer": "adamw",
    "weight_decay": 1e-4,
}
VIEWS = SimCLRViews(scale=(0.4, 1.0), colour=(0.4, 0.4, 0.0, 0.0), strength=1.0)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
PROJECTOR = {"projector_hidden": 2048, "projector_dim": 128}  # of two layers, as in SimCLR, for all that have one

# Each with the settings that held-out training images favoured, in searches of unequal length; learning rates are tried
# below.
METHODS: dict[str, Callable[..., SSLModule]] = {
    "simclr": lambda **k: SimCLR(views=VIEWS, **PROJECTOR, **k),
    "simclr_hard": lambda **k: SimCLR(views=VIEWS, beta=1.0, tau_plus=0.1, **PROJECTOR, **k),
    "moco": lambda **k: MoCo(views=VIEWS, queue_size=8192, momentum=0.99, **k),
    "mae": lambda **k: MAE(
        views=MAEViews(scale=(0.4, 1.0)), mask_ratio=0.5, mask_patch=7, mask_fill="noise", decoder="mlp", **k
    ),
    "mcl": lambda **k: MCL(views=VIEWS, mask_mode="independent", mask_ratio=0.25, projector_layers=2, **PROJECTOR, **k),
    "fusion": lambda **k: Fusion(
        views=VIEWS,
        contrastive_weight=1.0,
        reconstruction_weight=0.3,
        denoising_weight=0.0,
        mask_ratio=0.1,
        norm_pix=False,
        reconstruct_visible=True,
        temperature=0.2,
        decoder="mlp",
        projector_layers=2,
        **PROJECTOR,
        **k,
    ),
    "vae": lambda **k: VAE(decoder="mlp", **k),
    "lejepa": lambda **k: LeJEPA(views=VIEWS, projector_layers=2, **PROJECTOR, **k),
}


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def train(method: SSLModule, data: FashionMNIST, minutes: float, clock: str) -> dict[str, float]:
    wall = CLOCKS["wall"]()
    limit = WallClock(minutes * 60, clock=clock)
    bare_trainer(callbacks=[limit]).fit(method, data)
    return {"steps": limit.steps, "wall_minutes": (CLOCKS["wall"]() - wall) / 60}


def features(method: SSLModule, images: Tensor) -> Tensor:
    return torch.cat([method.represent(part) for part in images.split(1000)])


def data_for(root: str, seed: int, rows: slice = slice(None)) -> FashionMNIST:
    data = FashionMNIST(root, seed=seed)
    data.prepare_data()
    data.setup()
    full = data.train_set
    data.train_set = data.labelled_set = ImageTensors(full.images[rows], full.labels[rows])
    return data


def scores(data: FashionMNIST, encode: Callable[[Tensor], Tensor]) -> dict[str, float]:
    train_set, test = data.train_set, data.val_set
    result = evaluate(encode(train_set.images), train_set.labels, encode(test.images), test.labels)
    return {
        "knn": result.knn,
        "linear": result.linear,
        "ten_labels": result.ten_labels,
        "ten_labels_se": result.ten_labels_se,
    }


def baseline(name: str, root: str) -> dict[str, Any]:
    data = data_for(root, 0)
    if name == "raw pixels":
        return {"method": name, **scores(data, lambda images: images.flatten(1).float() / 255)}
    untrained = SimCLR(spec=data.spec, seed=0, **BACKBONE)
    untrained.configure_model()
    return {"method": name, **scores(data, lambda images: features(untrained, images))}


def trial(name: str, lr: float, minutes: float, root: str, clock: str) -> dict[str, Any]:
    """One learning rate, judged on training images that it does not train on."""
    data, held = data_for(root, 0, slice(50_000)), data_for(root, 0, slice(50_000, None)).train_set
    method = METHODS[name](lr=lr, seed=0, **BACKBONE)
    cost = train(method, data, minutes, clock)
    x, y = data.train_set.images[:10_000], data.train_set.labels[:10_000]
    score = linear_probe(features(method, x), y, features(method, held.images), held.labels)
    return {"method": name, "lr": lr, "minutes": minutes, "linear": score, **cost}


def run(name: str, lr: float, seed: int, minutes: float, root: str, clock: str) -> dict[str, Any]:
    data, method = data_for(root, seed), METHODS[name](lr=lr, seed=seed, **BACKBONE)
    cost = train(method, data, minutes, clock)
    return {
        "method": name,
        "lr": lr,
        "seed": seed,
        "minutes": minutes,
        **cost,
        **scores(data, lambda images: features(method, images)),
    }


def table(kept: dict[str, Any], names: list[str]) -> str:
    """A row for each encoder, its figures seed by seed."""
    lines = ["| encoder | kNN | linear probe | ten labels a class | steps | learning rate: trial's linear probe |"]
    lines.append("|---|---|---|---|---|---|")

    def row(name: str, entries: list[dict[str, Any]], note: str) -> str:
        knn, linear, steps = (
            ", ".join(format(entry[key], form) for entry in entries if key in entry)
            for key, form in (("knn", ".3f"), ("linear", ".3f"), ("steps", ",d"))
        )
        ten = ", ".join(f"{entry['ten_labels']:.3f} ± {entry['ten_labels_se']:.3f}" for entry in entries)
        return f"| {name} | {knn} | {linear} | {ten} | {steps} | {note} |"

    lines += [row(entry["method"], [entry], "") for entry in sorted(kept["baselines"], key=lambda e: e["method"])]
    for name in names:
        runs = sorted((entry for entry in kept["runs"] if entry["method"] == name), key=lambda entry: entry["seed"])
        tried = sorted((t["lr"], t["linear"]) for t in kept["trials"] if t["method"] == name)
        best = runs[0]["lr"]
        note = ", ".join(f"**{lr:g}**: {linear:.3f}" if lr == best else f"{lr:g}: {linear:.3f}" for lr, linear in tried)
        lines.append(row(name, runs, note))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=["all"], choices=[*METHODS, "all"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trial-minutes", type=float, default=1)
    parser.add_argument(
        "--root", default="data", help="folder of the data set, as torchvision lays it out (default: data)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--json", help="write the figures to this file, and keep those that it holds")
    a = parser.parse_args()
    names = list(METHODS) if "all" in a.method else a.method
    settings = {
        "minutes": a.minutes,
        "trial_minutes": a.trial_minutes,
        "clock": a.clock,
        "jobs": a.jobs,
        "threads": a.threads,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "lit_ssl": lit_ssl.__version__},
    }
    results = Results(a.json, settings, ["baselines", "trials", "runs"])
    quiet()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)  # of the processes that are started now
    with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn"), initializer=quiet) as pool:
        missing = [n for n in ("raw pixels", "untrained") if not results.has("baselines", method=n)]
        wanted = [(name, lr) for lr in RATES for name in names if not results.has("trials", method=name, lr=lr)]
        pending = {pool.submit(baseline, name, a.root): "baselines" for name in missing}
        pending |= {pool.submit(trial, *w, a.trial_minutes, a.root, a.clock): "trials" for w in wanted}
        for future in as_completed(pending):
            results.add(pending[future], future.result())
        left = [(name, seed) for seed in a.seeds for name in names if not results.has("runs", method=name, seed=seed)]
        rates = {name: results.best("trials", "linear", method=name)["lr"] for name in names}
        for future in as_completed([pool.submit(run, n, rates[n], s, a.minutes, a.root, a.clock) for n, s in left]):
            results.add("runs", future.result())
    print(f"\nFashion-MNIST, {a.minutes:g} minutes ({a.clock} clock), {a.threads} thread(s), 60,000 / 10,000 images\n")
    print(table(results.kept, names))


if __name__ == "__main__":
    main()
