"""ELBO and importance-weighted bound of a VAE on binarised MNIST, in nats per image.

    python benchmarks/vae_mnist.py --minutes 10 --seeds 0 --root DIR --json F

Binarisation: static and random. Each pixel of each image, of training and test alike, is 1 with its own gray value as
probability, drawn once and for all, as in the set of Larochelle & Murray (2011) that the published figures are for
(theirs is another draw of the same kind). A threshold at a half would make an easier set, a new draw in each epoch an
easier training.

A trial trains on the first 50,000 training images for ``--trial-minutes`` and is judged by the ELBO of the other
10,000; the best learning rate then trains on all 60,000 for ``--minutes``, once with each seed. The 10,000 test images
are read once, at the end of each of these runs. One thread. ``--clock cpu`` counts the time a run computed instead of
the time that went by: the same on an idle machine, and fair on a busy one.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from wall_clock import CLOCKS, WallClock, bare_trainer

import lit_ssl
from lit_ssl import VAE
from lit_ssl.datamodules import MNIST, ImageTensors
from lit_ssl.random import sample_key, uniform

# One hidden layer, which held-out training images favoured over two of 512; it is pythae's network, too. Learning rates
# are tried below.
RECIPE: dict[str, Any] = {
    "backbone": "mlp",
    "backbone_options": {"hidden": (400,)},
    "decoder_hidden": (400,),
    "latent_dim": 40,
    "optimizer_options": {"fused": True},
    "binarize": "static",  # the images are binary already
}
RATES = (1e-3, 2e-3, 4e-3)
BATCH = 128
SAMPLES = 64
PUBLISHED = "89.8 (pythae, 200 importance samples), 89.9 (Rezende & Mohamed 2015, arXiv:1505.05770, without flow)"


def binarized(images: Tensor, split: str) -> Tensor:
    """Images whose pixels are 0 or 255, each drawn once by its gray value: uint8 (N, 1, 28, 28)."""
    key = sample_key(0, 0, torch.arange(len(images)))
    parts = zip(images.split(5000), key.split(5000), strict=True)
    return torch.cat([(uniform(k, split, x.shape[1:]) < x / 255).to(torch.uint8) * 255 for x, k in parts])


def load(root: str) -> tuple[ImageTensors, ImageTensors]:
    """The binarised training and test set."""
    data = MNIST(root)
    data.setup()
    assert isinstance(data.train_set, ImageTensors)
    assert isinstance(data.val_set, ImageTensors)
    train = ImageTensors(binarized(data.train_set.images, "train"), data.train_set.labels)
    return train, ImageTensors(binarized(data.val_set.images, "test"), data.val_set.labels)


def run(
    root: str, train: ImageTensors, held: ImageTensors, minutes: float, clock: str, samples: int, **options: Any
) -> dict[str, float]:
    """Trains for the time given; the bounds on ``held``, in nats per image, and how far training came."""
    data = MNIST(root, batch_size=BATCH, seed=options["seed"])
    data.setup()
    data.train_set, data.val_set = train, held
    method = VAE(**RECIPE, iwae_samples=samples, **options)
    limit, wall = WallClock(minutes * 60, clock=clock), CLOCKS["wall"]()
    trainer = bare_trainer(callbacks=[limit])
    trainer.fit(method, data)
    wall = (CLOCKS["wall"]() - wall) / 60
    trainer.limit_val_batches = 1.0
    (found,) = trainer.validate(method, data, verbose=False)
    bounds = {name.removeprefix("val/"): value for name, value in found.items() if name != "val/loss"}
    if samples:
        bounds[f"iwae_{samples}"] = bounds.pop("iwae")
    return {**bounds, "steps": limit.steps, "epochs": limit.steps * BATCH / len(train), "wall_minutes": wall}


def pixels_alone(train: ImageTensors, test: ImageTensors) -> float:
    """What a model of 784 independent pixels reaches: log-likelihood in nats per image."""
    frequency = (train.images / 255).mean(0).clamp(1e-4, 1 - 1e-4)
    x = test.images / 255
    return -F.binary_cross_entropy(frequency.expand_as(x), x, reduction="none").sum((1, 2, 3)).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds MNIST/raw, as torchvision lays it out")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trial-minutes", type=float, default=None, help="default: a tenth of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    root, clock, minutes = arguments.root, arguments.clock, arguments.minutes
    trial_minutes = arguments.trial_minutes or minutes / 10
    train, test = load(root)
    first, held = (ImageTensors(train.images[r], train.labels[r]) for r in (slice(50_000), slice(50_000, None)))
    result: dict[str, Any] = {
        "binarisation": "static: each pixel drawn once, with its gray value as probability",
        "recipe": {**RECIPE, "batch_size": BATCH},
        "minutes": minutes,
        "trial_minutes": trial_minutes,
        "clock": clock,
        "threads": 1,
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "lit_ssl": lit_ssl.__version__},
        "pixels_alone": pixels_alone(train, test),
        "trials": [],
        "runs": [],
    }

    def save() -> None:
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")

    for lr in RATES:
        trial = run(root, first, held, trial_minutes, clock, 0, lr=lr, seed=0)
        result["trials"].append({"lr": lr, **trial})
        print(f"trial lr={lr:g}: ELBO of held-out training images {trial['elbo']:.2f}", flush=True)
        save()
    best = max(result["trials"], key=lambda trial: trial["elbo"])["lr"]
    for seed in arguments.seeds:
        result["runs"].append(
            {"seed": seed, "lr": best, **run(root, train, test, minutes, clock, SAMPLES, lr=best, seed=seed)}
        )
        print(f"seed {seed}: {result['runs'][-1]}", flush=True)
        save()

    print(f"\nMNIST, static random binarisation, {minutes:g} minutes ({clock}) on one thread, 10,000 test images")
    print("nats per image; ELBO and IWAE are lower bounds of log p(x)\n")
    print(f"| run | ELBO | reconstruction | KL | IWAE_{SAMPLES} | |\n|---|---|---|---|---|---|")
    print(f"| independent pixels | {result['pixels_alone']:.2f} | | | | their exact log-likelihood |")
    for r in result["runs"]:
        figures = " | ".join(f"{r[name]:.2f}" for name in ("elbo", "reconstruction", "kl", f"iwae_{SAMPLES}"))
        print(f"| VAE, seed {r['seed']} | {figures} | lr {r['lr']:g}, {r['epochs']:.0f} epochs |")
    print(f"\npublished -log p(x) by importance sampling on static binarisation: {PUBLISHED}")


if __name__ == "__main__":
    main()
