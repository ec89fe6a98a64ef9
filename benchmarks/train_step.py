"""How many images a second a training step takes in, from the loader to the optimizer, beside the field.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --profile

SimCLR under ``lightning.Trainer.fit`` on one CPU thread:

- ``quickstart_28``: the small convolutional net of ``configs/quickstart.yaml`` on 28 x 28 gray images;
- ``quickstart_32``: the same net on 32 x 32 RGB images;
- ``resnet18_32``: ResNet-18 with SimCLR's stem for CIFAR on 32 x 32 RGB images;
- ``vit_tiny_224``: ViT-Ti/16 on 224 x 224 RGB images;
- each as ``..._bf16_compile``, too: ``bf16-mixed``, and the backbone through ``torch.compile`` (a ViT's blocks each).

Three do the same work, with copies of one backbone, in one memory format, with one batch size, width of projector,
temperature, precision, AdamW and cosine schedule, from uint8 images in memory: ``lit_ssl.SimCLR`` with a data module;
a LightningModule made of lightly's ``SimCLRTransform``, ``SimCLRProjectionHead``, ``NTXentLoss`` and
``CosineWarmupScheduler`` as lightly's own benchmarks have it; and stable-pretraining's ``Module`` with its
``forward.simclr`` and ``NTXEntLoss`` with the faster of the two kinds of views that it documents: its transforms of
PIL images, or its ``gpu_transforms`` (kornia's, a batch at once). Views have the operations and probabilities of
SimCLR at full colour strength; no blur at 28 and 32 pixels, blur at .5 at 224; on gray images saturation, hue and
grayscale, which change nothing there, are left out (but where stable-pretraining's jitter refuses a range of 0). The
trainer keeps no checkpoints, shows no progress and has no logger; each logs its loss as it always does;
stable-pretraining runs without its ``Manager``, and without the callbacks that it adds to every trainer.

Fits of a few steps take turns, so that whatever else the machine does hits all alike. The clock of a fit starts at the
end of its first step and stops at the end of its last. A fit that is not counted comes first: it compiles, chooses
between those two kinds of views, and compares the views' shapes and statistics, the parameters and the losses. All load
in the process that trains. The rows ``2 workers``, for the net of the quickstart in float32 (elsewhere the loader's
part is small), have two more processes for a peer's loader, of one thread each, and so up to three cores where lit_ssl
has one. With ``--threads 2`` all have two threads, and the figure of a peer is that of its best number of workers.

In the end the cases in float32 run once more, to show where the time of a step of lit_ssl goes; with ``--profile`` this
is all that runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peers import Case, Contender, built, contenders, ours, pixels, trainer
from sections import Sections
from views import machine

from lit_ssl import ImageSpec

QUICKSTART = {"width": 32, "stages": 2, "stem_stride": 2, "grid": 3}
CASES = {
    "quickstart_28": Case("convnet", ImageSpec(28, channels=1), 256, 4, 5, QUICKSTART),
    "quickstart_32": Case("convnet", ImageSpec(32), 256, 4, 3, QUICKSTART),
    "resnet18_32": Case("resnet18", ImageSpec(32), 16, 2, 3),
    "vit_tiny_224": Case("vit_tiny_patch16_224", ImageSpec(224), 4, 2, 3, blur=0.5, lr=1e-4),
}
FAST = "_bf16_compile"


class Clock(Callback):
    """When each step ended, its loss, and the first batch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch if batch_idx == 0 else self.batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(float(outputs["loss"]))


def fit(one: Contender, case: Case, fast: bool) -> tuple[float, Any]:
    """Images a second, and a batch."""
    clock = Clock()
    trainer(case.steps + 1, fast, clock).fit(one.module, **one.data)
    one.losses += clock.losses
    return case.batch * case.steps / (clock.ends[-1] - clock.ends[0]), clock.batch


def compare(name: str, case: Case, fast: bool, threads: int) -> tuple[dict[str, float], list[str]]:
    """Images a second by library, and rows that prove the work. Prints as it goes.

    Raises:
        RuntimeError: views have other shapes, backbones other parameters, a loss is not finite, or that of a
            net of the quickstart does not fall.
    """
    turns, rows, first = contenders(case, fast), [], {}
    for one in [one for one in turns if not one.workers]:
        first[one.name], batch = fit(one, case, fast)
        rows.append(one.work(batch))
    if len({(row.split(" | ")[1], row.split(" | ")[4]) for row in rows}) > 1:
        raise RuntimeError(f"not the same work: {rows}")
    kinds = [key for key in first if key.startswith("stable")]
    slower = min(kinds, key=lambda key: first[key])
    turns = [one for one in turns if slower.rsplit(",", 1)[0] not in one.name]
    if threads == 1 and (fast or not case.options):
        turns = [one for one in turns if not one.workers]
    rates: dict[str, list[float]] = {one.name: [] for one in turns}
    for _ in range(case.rounds):
        for one in turns:
            rates[one.name].append(fit(one, case, fast)[0])
    result: dict[str, float] = {}
    for one in turns:
        rate, third = rates[one.name], len(one.losses) // 3
        start, end = statistics.mean(one.losses[:third]), statistics.mean(one.losses[-third:])
        if not all(map(math.isfinite, one.losses)) or (case.options and end >= start):  # others take too few steps
            raise RuntimeError(f"{one.name}: the loss of {name} does not fall: {one.losses}")
        median = statistics.median(rate)
        if threads > 1 or not one.workers:
            result[one.library] = max(median, result.get(one.library, 0.0))
        ratio = statistics.median(a / b for a, b in zip(rates["lit_ssl"], rate, strict=True))
        spread = f"{median:,.1f} [{min(rate):,.1f}, {max(rate):,.1f}]"
        print(f"| {name} | {one.name} | {spread} | {ratio:.2f} | {start:.2f}, {end:.2f} |", flush=True)
    return result, [f"| {name} | {row} |" for row in rows]


def profile(names: list[str]) -> None:
    print("| step of lit_ssl | part | ms | share |\n|---|---|---|---|", flush=True)
    for name in names:
        case, fast = CASES[name.removesuffix(FAST)], name.endswith(FAST)
        one = ours(case, built(case), pixels(case), fast)
        sections = Sections(one.module, one.data["datamodule"])
        trainer(3 * case.steps + 1, fast, sections).fit(one.module, **one.data)
        total = sum(sections.spent.values())
        for part, seconds in sorted(sections.spent.items(), key=lambda entry: -entry[1]):
            each = 1e3 * seconds / (3 * case.steps)
            print(f"| {name} | {part} | {each:,.2f} | {100 * seconds / total:.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name + kind for kind in ("", FAST) for name in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, help="default: all; for --profile those in float32")
    parser.add_argument(
        "--threads", type=int, choices=[1, 2], default=1, help="of the process that trains (default: 1)"
    )
    parser.add_argument("--profile", action="store_true", help="only show where the time of a step of lit_ssl goes")
    parser.add_argument("--json", type=Path, help="write images a second of each case and library here")
    a = parser.parse_args()
    if a.profile and a.json:
        parser.error("--json holds what is compared; --profile compares nothing")
    torch.set_num_threads(a.threads)
    # Else a first batch would slow down the code that is compiled for another's.
    torch._dynamo.config.automatic_dynamic_shapes = False
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    print(f"{machine()}, lightning {version('lightning')}, {a.threads} thread(s)\n", flush=True)
    if a.profile:
        profile(a.cases or list(CASES))
        return
    print("| case | library | images/s | ratio of lit_ssl | loss |\n|---|---|---|---|---|", flush=True)
    medians, proof = {}, []
    for name in a.cases or names:
        medians[name], rows = compare(name, CASES[name.removesuffix(FAST)], name.endswith(FAST), a.threads)
        proof += rows
    print("\n| case | library | views | mean | std | backbone | projector |\n|---|---|---|---|---|---|---|")
    print("\n".join(proof), end="\n\n")
    if plain := [name for name in a.cases or names if not name.endswith(FAST)]:
        profile(plain)
    if a.json:
        a.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
