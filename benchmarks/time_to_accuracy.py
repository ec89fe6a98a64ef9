"""How soon this package is as good on Fashion-MNIST as the better of two peers is at the end of its time.

    pip install -r benchmarks/requirements.txt
    python benchmarks/time_to_accuracy.py --root DIR --json time_to_accuracy.json

SimCLR of lightly's parts and SimCLR of stable-pretraining (as in ``train_step.py``) each train for ``--minutes``, once
with each seed. Then the k nearest of the 60,000 training images classify the 10,000 test images. The accuracy of the
better of the two is the target of that seed. Every schedule ends with its budget, so that a run tells nothing of what a
shorter one would have reached. Ours therefore runs anew, with a schedule of its own, with each of three budgets: an
eighth, a quarter and half of the peers'. Its time to accuracy is the least of them that reaches the target and from
which on every larger one does, too; where half does not, the whole budget is tried; where that does not, the script
fails. A peer's time is its whole budget, also where it stays below the other's accuracy and would need more.

Ours is ``SimCLR``, too, with the peers' own settings but for the optimizer (see ``RECIPE``): theirs is AdamW, as in
``train_step.py``; ours is Muon, which ``optimizer="muon"`` asks of timm. All have the small convolutional net of
``configs/quickstart.yaml``, batches of 128, a projector of 512 and 128, temperature 0.2, a weight decay of 1e-4, a
warm-up over a twentieth of the budget and a cosine to zero over the rest, float32, as many threads, and two views with
the same operations and probabilities (crops from 0.08 of the area on, flips, brightness and contrast at full
strength). The peers load in the way that is fastest by the same clock on this machine, measured first: lightly without
workers or with two, stable-pretraining so, too, with its transforms of PIL images or with those that it takes from
kornia. Each library tries four learning rates for as long (``--trial-minutes``): such a trial trains on the first
50,000 training images, and the kNN of the other 10,000 among 20,000 of these decides. The final runs have all 60,000,
and the test images decide nothing but the targets.

``--clock cpu`` counts the seconds that the process which trains computed, instead of those that went by: the same on an
idle machine, and fair on a busy one. The peers then have no workers, whose time it would not count. Neither clock
counts imports, reading the files, building networks, or evaluation.

Runs that the file of ``--json`` holds are kept, so that a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import torch
from fashion_mnist import BACKBONE, data_for, quiet
from lightning.pytorch import LightningModule, Trainer, seed_everything
from peers import Case, Contender, contenders
from results import Results
from torch import Tensor
from views import machine
from wall_clock import CLOCKS, WallClock, bare_trainer

from lit_ssl import SimCLR, SSLModule
from lit_ssl.datamodules import FashionMNIST, ImageTensors
from lit_ssl.evaluation import knn
from lit_ssl.views import SimCLRViews

CASE = Case("convnet", FashionMNIST().spec, 128, 0, 0, BACKBONE["backbone_options"])
ADAMW, MUON = (2e-3, 4e-3, 8e-3, 1.6e-2), (5e-3, 1e-2, 2e-2, 4e-2)
SHARES = (1 / 8, 1 / 4, 1 / 2)
PEERS = ("lightly", "stable_pretraining")
SPEED_SECONDS = 10

# What held-out training images favoured in half a minute, among our methods, their settings, and optimizers.
RECIPE: dict[str, Any] = {
    **BACKBONE,
    "optimizer": "muon",
    "views": SimCLRViews(strength=1.0),
    "temperature": 0.2,
    "projector_hidden": 512,
    "projector_dim": 128,
    "lr_scaling": "none",
}


class Budget(WallClock):
    """Sets the learning rate of any module itself, whatever scheduler it brings, before each step from the first on."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = self.now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.factor()


def contender(name: str, lr: float, seed: int, data: FashionMNIST) -> Contender:
    seed_everything(seed, verbose=False)  # for the peers; ours draws from its own
    if name == "lit_ssl":
        data.batch_size = CASE.batch
        return Contender(name, SimCLR(lr=lr, seed=seed, **RECIPE), {"datamodule": data}, lambda batch: batch["views"])
    every = contenders(replace(CASE, lr=lr, seed=seed), False, data.train_set.images)
    return next(one for one in every if one.name == name)


def rates_of(name: str) -> tuple[float, ...]:
    return MUON if name == "lit_ssl" else ADAMW


def train(one: Contender, seconds: float, clock: str) -> dict[str, float]:
    wall, limit = CLOCKS["wall"](), Budget(seconds, clock=clock)
    bare_trainer(callbacks=[limit]).fit(one.module, **one.data)
    return {"steps": limit.steps, "wall_s": round(CLOCKS["wall"]() - wall, 1)}


def features(one: Contender, images: Tensor) -> Tensor:
    if isinstance(one.module, SSLModule):
        return torch.cat([one.module.represent(part) for part in images.split(1000)])
    one.module.eval()
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (CASE.spec.mean, CASE.spec.std))
    with torch.no_grad():
        return torch.cat([one.module.backbone((part / 255 - mean) / std) for part in images.split(1000)])


def score(one: Contender, bank: ImageTensors, held: ImageTensors) -> float:
    return knn(features(one, bank.images), bank.labels, features(one, held.images), held.labels)


def speed(name: str, root: str, clock: str) -> dict[str, Any]:
    """Images a second, to choose a peer's views and workers by."""
    cost = train(contender(name, ADAMW[0], 0, data_for(root, 0)), SPEED_SECONDS, clock)
    return {"contender": name, "images_per_s": cost["steps"] * CASE.batch / SPEED_SECONDS}


def trial(name: str, lr: float, minutes: float, root: str, clock: str) -> dict[str, Any]:
    """One learning rate, judged on training images that it does not train on."""
    data, held = data_for(root, 0, slice(50_000)), data_for(root, 0, slice(50_000, None)).train_set
    one = contender(name, lr, 0, data)
    cost = train(one, minutes * 60, clock)
    bank = ImageTensors(data.train_set.images[:20_000], data.train_set.labels[:20_000])
    return {"contender": name, "lr": lr, "minutes": minutes, "knn": score(one, bank, held), **cost}


def run(name: str, lr: float, seed: int, seconds: float, root: str, clock: str) -> dict[str, Any]:
    data = data_for(root, seed)
    one = contender(name, lr, seed, data)
    cost = train(one, seconds, clock)
    figures = {"seconds": seconds, "knn": score(one, data.train_set, data.val_set), **cost}
    return {"contender": name, "lr": lr, "seed": seed, **figures}


def baseline(name: str, root: str) -> dict[str, Any]:
    data = data_for(root, 0)
    if name == "untrained":
        one = contender("lightly, 0 workers", ADAMW[0], 0, data)  # whose first weights are those of all
        return {"encoder": name, "knn": score(one, data.train_set, data.val_set)}
    x, test = (part.images.flatten(1) / 255 for part in (data.train_set, data.val_set))
    return {"encoder": name, "knn": knn(x, data.train_set.labels, test, data.val_set.labels)}


def reached(accuracy: dict[float, float], target: float) -> float | None:
    """The least of the budgets, by seconds, from which on every larger one is at the target or above."""
    least = None
    for seconds in sorted(accuracy, reverse=True):
        if accuracy[seconds] < target:
            break
        least = seconds
    return least


def times(results: Results, chosen: dict[str, str], seeds: Iterable[int]) -> dict[int, tuple[float, float | None]]:
    """By seed: the target, and when ours reaches it."""
    found = {}
    for seed in seeds:
        target = max(results.of("runs", contender=chosen[peer], seed=seed)[0]["knn"] for peer in PEERS)
        ours = {entry["seconds"]: entry["knn"] for entry in results.of("runs", contender="lit_ssl", seed=seed)}
        found[seed] = target, reached(ours, target)
    return found


def report(results: Results, found: dict[int, tuple[float, float | None]], budget: float, seeds: list[int]) -> str:
    runs = results.kept["runs"]
    columns = " | ".join(f"kNN, seed {seed}" for seed in seeds)
    lines = [f"| library | rate | s | images | {columns} |", "|---" * (4 + len(seeds)) + "|"]
    for entry in results.kept["baselines"]:
        lines.append(f"| {entry['encoder']} | | | |" + f" {entry['knn']:.4f} |" * len(seeds))
    kinds = {(entry["contender"], entry["seconds"]) for entry in runs}
    for name, seconds in sorted(kinds, key=lambda kind: (kind[0] == "lit_ssl", kind)):
        rows = {entry["seed"]: entry for entry in results.of("runs", contender=name, seconds=seconds)}
        images = statistics.mean(r["steps"] for r in rows.values()) * CASE.batch
        scores = " | ".join(f"{rows[seed]['knn']:.4f}" if seed in rows else "" for seed in seeds)
        rate = next(iter(rows.values()))["lr"]
        lines.append(f"| {name} | {rate:g} | {seconds:g} | {images:,.0f} | {scores} |")
    lines += ["", "| seed | target | s of lit_ssl | of the peers' |", "|---|---|---|---|"]
    for seed, (target, ours) in found.items():
        took = "not reached | |" if ours is None else f"{ours:g} | {ours / budget:.3f} |"
        lines.append(f"| {seed} | {target:.4f} | {took}")
    lines += ["", "| peer | images/s |", "|---|---|"]
    lines += [f"| {entry['contender']} | {entry['images_per_s']:,.0f} |" for entry in results.kept["speeds"]]
    lines += ["", "| library | learning rate: kNN of its trial |", "|---|---|"]
    for name in dict.fromkeys(entry["contender"] for entry in results.kept["trials"]):
        tried = sorted(results.of("trials", contender=name), key=lambda entry: entry["lr"])
        each = ", ".join(f"{entry['lr']:g}: {entry['knn']:.4f}" for entry in tried)
        lines.append(f"| {name} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds FashionMNIST/raw, as torchvision lays it out")
    parser.add_argument("--minutes", type=float, default=2, help="of each peer's run (default: 2)")
    parser.add_argument("--trial-minutes", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=2, help="threads of each run")
    parser.add_argument("--json", help="write the figures to this file, and keep those that it holds")
    a = parser.parse_args()
    budget = a.minutes * 60
    settings = {
        "minutes": a.minutes,
        "trial_minutes": a.trial_minutes,
        "clock": a.clock,
        "jobs": a.jobs,
        "threads": a.threads,
        "cores": os.cpu_count(),
        "recipe": {"batch": CASE.batch, "rates": MUON, **RECIPE, "views": str(RECIPE["views"])},
        "peers": {"batch": CASE.batch, "rates": ADAMW},
        "machine": machine(),
    }
    results = Results(a.json, settings, ["baselines", "speeds", "trials", "runs"])
    os.environ["OMP_NUM_THREADS"] = str(a.threads)  # of the processes that are started now
    print(f"{machine()}, lightning {version('lightning')}, {a.threads} thread(s), {a.clock} clock\n", flush=True)
    with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn"), initializer=quiet) as pool:

        def measure(kind: str, task: Any, wanted: list[tuple[Any, ...]], *names: str) -> None:
            """Those that the file does not hold yet."""
            left = [w for w in wanted if not results.has(kind, **dict(zip(names, w, strict=False)))]
            for future in as_completed([pool.submit(task, *w) for w in left]):
                results.add(kind, future.result())

        measure("baselines", baseline, [(name, a.root) for name in ("raw pixels", "untrained")], "encoder")
        ways = ["lightly", "stable_pretraining, pil", "stable_pretraining, kornia"]
        names = [f"{way}, {n} workers" for way in ways for n in ([0] if a.clock == "cpu" else [0, 2])]
        measure("speeds", speed, [(name, a.root, a.clock) for name in names], "contender")
        speeds = results.kept["speeds"]
        chosen = {"lit_ssl": "lit_ssl"}
        for peer in PEERS:
            mine = [entry for entry in speeds if entry["contender"].startswith(peer)]
            chosen[peer] = max(mine, key=lambda entry: entry["images_per_s"])["contender"]
        wanted = [(name, lr, a.trial_minutes, a.root, a.clock) for name in chosen.values() for lr in rates_of(name)]
        measure("trials", trial, wanted, "contender", "lr")
        rates = {name: results.best("trials", "knn", contender=name)["lr"] for name in chosen.values()}
        lengths = {name: [budget] if name != "lit_ssl" else [share * budget for share in SHARES] for name in rates}

        def runs(wanted: list[tuple[str, int, float]]) -> None:
            tasks: list[tuple[Any, ...]] = [(n, rates[n], seed, s, a.root, a.clock) for n, seed, s in wanted]
            measure("runs", run, tasks, "contender", "lr", "seed", "seconds")

        runs([(name, seed, seconds) for seed in a.seeds for name in rates for seconds in lengths[name]])
        found = times(results, chosen, a.seeds)
        runs([("lit_ssl", seed, budget) for seed, (_, seconds) in found.items() if seconds is None])
        found = times(results, chosen, a.seeds)
    print("\n" + report(results, found, budget, a.seeds))
    ours = [seconds for _, seconds in found.values() if seconds is not None]
    if len(ours) < len(found):
        sys.exit("lit_ssl does not reach the target with every seed")
    results.kept["time_to_accuracy_s"] = {"lit_ssl": statistics.mean(ours), **dict.fromkeys(PEERS, budget)}
    results.write()


if __name__ == "__main__":
    main()
