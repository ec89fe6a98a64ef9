"""What two views cost: MCL's two half views and SimCLR's two full views, each against one full view.

    python benchmarks/mcl_cost.py --json mcl_cost.json

One training step's forward and backward pass on one CPU thread, from views that are made already. The full view is the
encoder alone; MCL and SimCLR are their whole loss, with normalisation, masks, projector and InfoNCE. All take turns in
every round, in an order that rotates; ratios are taken within a round. The clock counts the thread's own time, so
other work on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ssl import MCL, ImageSpec, SimCLR, SSLModule

SETTINGS = {  # side in pixels: backbone, images a batch
    224: ("vit_small_patch16_224", 8),
    64: ("vit_tiny_patch16_224", 32),  # 8x8 patches, which it takes for images this small
}
FULL = "one full view"


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "lit-ssl"))
    return f"{cpu}, one thread; Python {platform.python_version()}, {packages}"


def contenders(size: int) -> dict[str, Callable[[], Tensor]]:
    """By name, a function that makes one loss from two views of a batch of images; all share one encoder."""
    backbone, rows = SETTINGS[size]
    spec = ImageSpec(size)
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(rows, 3, *spec.size, generator=generator) for _ in range(2)]
    key = torch.arange(rows)

    def built(method: SSLModule) -> SSLModule:
        method.configure_model()
        return method.train()

    mcl = built(MCL(spec=spec, backbone=backbone, seed=0))
    simclr = built(SimCLR(spec=spec, backbone=mcl.backbone, seed=0))

    def loss(method: SSLModule, *views: Tensor) -> Callable[[], Tensor]:
        batch: dict[str, Any] = {"views": list(views), "key": key}
        return lambda: method.loss(batch)["loss"]

    return {
        FULL: lambda: mcl.embed(views[0]).square().mean(),
        "MCL: two halves of one picture": loss(mcl, views[0]),
        "MCL: a half of each of two views": loss(mcl, *views),
        "SimCLR: two full views": loss(simclr, *views),
    }


def seconds(losses: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Of each step in each round, after a round that is not counted."""
    names = list(losses)
    result: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.thread_time()
            losses[name]().backward()
            elapsed = time.thread_time() - begin
            if number >= 0:
                result[name].append(elapsed)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the ratios of each setting, round by round, here")
    parser.add_argument("--rounds", type=int, default=12, help="how often each is timed (default: 12)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    torch.set_num_threads(1)
    print(f"{machine()}; median of {arguments.rounds} rounds, [least, greatest]\n", flush=True)
    print("| encoder, images | forward and backward of | ms an image | times one full view |\n|---|---|---|---|")
    found: dict[str, dict[str, list[float]]] = {}
    for size, (backbone, rows) in SETTINGS.items():
        times = seconds(contenders(size), arguments.rounds)
        found[f"{backbone}@{size}"] = ratios = {
            name: [t / full for t, full in zip(values, times[FULL], strict=True)] for name, values in times.items()
        }
        for name, ratio in ratios.items():
            per_image = 1000 * statistics.median(times[name]) / rows
            spread = f"{statistics.median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}]"
            print(f"| {backbone}, {rows} of {size} px | {name} | {per_image:.1f} | {spread} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
