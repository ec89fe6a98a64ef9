"""How the time and the memory of a training step grow with batch, image size, number of views and size of the data set.

    python benchmarks/growth.py --json growth.json --figure docs/growth.png

The images are computed from their index, so that a set of ten million takes no room and what grows is ours. Every
measurement is a process of its own, forked from one that has imported everything and computed nothing; one thread. One
thing varies at a time: LeJEPA with the small ``convnet`` and views of its own recipe, 64 images of 32 pixels, two views
and 10,000 images, but for what varies; for the batch it is SimCLR, whose similarities are the square of the batch.

- A step is what ``Trainer.fit`` takes from one batch to the next: order, images, keys, views, loss, backward pass,
  optimizer. Time is the process's own, median of the steps; the points take turns in every round. Memory is what
  the process's resident set rises by at its greatest, over what it holds after two small steps.
- First batch: from making the data module to having a batch of 256 in hand, by the clock on the wall. Peak memory there
  is that of the first batch, its keys, and then the whole epoch's order; ``memory_per_sample_bytes`` is its slope from
  the smallest to the largest set. Beside it, torch's ``DataLoader(shuffle=True)`` up to its first batch.

The exponent in each panel is the slope of the least-squares line through the logarithms of all its points.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; a process with threads must not fork

import torch
from apart import apart, forget_peak, peak_memory
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset
from wall_clock import bare_trainer

from lit_ssl import ImageSpec, LeJEPA, SimCLR, SSLModule
from lit_ssl.datamodules import ImageDataModule
from lit_ssl.random import sample_key
from lit_ssl.views import Batch, MultiCropViews, SimCLRViews

BASE = {"batch": 64, "image_size": 32, "views": 2, "dataset": 10_000}
VARIED = {
    "batch": (64, 128, 256, 512, 1024),
    "image_size": (32, 48, 64, 96, 128),
    "views": (2, 4, 6, 8),
    "dataset": (10_000, 100_000, 1_000_000, 10_000_000),
}
SET = "images in the set"
LABELS = {"batch": "batch", "image_size": "image size", "views": "views", "dataset": SET, "first_batch": SET}
CONVNET = {"width": 16, "stages": 3, "stem_stride": 2}
FIRST = 256  # rows of the batch that is waited for
STEPS, SECONDS = 5, 0.5  # of a measurement: at least so many, and until so long
Cases = dict[str, dict[str, float]]
Panels = dict[tuple[str, str], dict[str, dict[int, float]]]  # (what varies, "s" or "bytes"): library: points


class Virtual(Dataset[Batch]):
    """uint8 RGB images that are a pattern and a function of their index, and nothing stored per image."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.pattern = torch.arange(3 * size * size).mul(73).to(torch.uint8).view(3, size, size)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        shade = (index * 37 & 255).to(torch.uint8)
        return {"image": self.pattern ^ shade[:, None, None, None], "label": index % 10, "index": index}


class VirtualData(ImageDataModule):
    def __init__(self, count: int, size: int, batch_size: int) -> None:
        super().__init__(batch_size=batch_size, seed=0)
        self.count, self.spec = count, ImageSpec(size)

    def load(self) -> None:
        self.train_set = Virtual(self.count, self.spec.size[0])


class StepTimes(Callback):
    """Seconds of this process from the end of one step to the end of the next, until there are enough."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last: float | None = None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        now = time.process_time()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now
        trainer.should_stop = len(self.seconds) >= STEPS and sum(self.seconds) >= SECONDS


def method(varied: str, size: int, views: int) -> SSLModule:
    shared: dict[str, Any] = {"backbone": "convnet", "backbone_options": CONVNET, "spec": ImageSpec(size), "seed": 0}
    if varied == "batch":
        return SimCLR(views=SimCLRViews(), projector_hidden=256, **shared)
    crops = MultiCropViews(local_views=views - 2, local_size=size, blur=(0.5, 0.5, 0.5))
    return LeJEPA(views=crops, projector_hidden=256, num_directions=256, **shared)


def step(varied: str, value: int) -> dict[str, float]:
    """Median seconds of a step, and by how many bytes the resident set has risen."""
    at = {**BASE, varied: value}
    module = method(varied, at["image_size"], at["views"])

    def fit(batch: int, **options: Any) -> None:
        data = VirtualData(max(at["dataset"], batch), at["image_size"], batch)
        bare_trainer(log_every_n_steps=1000, **options).fit(module, datamodule=data)

    fit(8, max_steps=2)  # starts allocators, builds the networks
    before = forget_peak()
    times = StepTimes()
    fit(at["batch"], callbacks=[times])
    return {"s": statistics.median(times.seconds), "bytes": peak_memory() - before}


def first_batch(library: str, count: int, whole: bool) -> dict[str, float]:
    """Seconds until a batch is there, and the bytes that the resident set has risen by then, or in a whole epoch."""
    serve(library, 2 * FIRST)  # imports what is imported late
    before = forget_peak()
    begin = time.perf_counter()
    walk = serve(library, count)
    elapsed = time.perf_counter() - begin
    if whole:
        walk()
    return {"s": elapsed, "bytes": peak_memory() - before}


def serve(library: str, count: int) -> Callable[[], None]:
    """Make a loader of ``count`` images and take its first batch. Returns what goes through the order of the rest."""
    if library == "torch":
        stream = iter(DataLoader(Virtual(count, 32), batch_size=FIRST, shuffle=True, collate_fn=lambda batch: batch))
        if len(next(stream)["image"]) != FIRST:
            raise RuntimeError("the first batch is not whole")
        return lambda: None
    data = VirtualData(count, 32, FIRST)
    data.setup("fit")
    loader = data.train_dataloader()
    batch = next(iter(loader))
    if len(sample_key(0, 0, batch["index"]).unique()) != FIRST:
        raise RuntimeError("the first batch is not of different images")
    return lambda: deque(loader.sampler, maxlen=0).clear()


def exponent(points: dict[int, float]) -> float:
    """The slope of the least-squares line through (log x, log y)."""
    x, y = [math.log(value) for value in points], [math.log(value) for value in points.values()]
    return round(statistics.linear_regression(x, y).slope, 2) + 0.0  # never -0.0


def number(value: int) -> str:
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if value >= 10**4 and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 3) -> str:
    median, least, greatest = (f"{f(values) / unit:.{digits}f}" for f in (statistics.median, min, max))
    return f"{median} [{least}, {greatest}]"


def growth_of_steps(rounds: int) -> Panels:
    found: dict[tuple[str, int], list[dict[str, float]]] = {(v, x): [] for v, xs in VARIED.items() for x in xs}
    for _ in range(rounds):
        for varied, value in found:
            found[varied, value].append(apart(step, varied, value))
    print("| varied | value | ms a step | peak MiB |\n|---|---|---|---|")
    panels: Panels = {(varied, field): {"lit_ssl": {}} for field in ("s", "bytes") for varied in VARIED}
    for (varied, value), answers in found.items():
        seconds, peaks = ([answer[field] for answer in answers] for field in ("s", "bytes"))
        panels[varied, "s"]["lit_ssl"][value] = statistics.median(seconds)
        panels[varied, "bytes"]["lit_ssl"][value] = statistics.median(peaks)
        print(f"| {LABELS[varied]} | {number(value)} | {spread(seconds, 1e-3, 1)} | {spread(peaks, 2**20, 1)} |")
    return panels


def growth_of_sets(rounds: int) -> Panels:
    libraries, sizes = ("lit_ssl", "torch"), VARIED["dataset"]
    found: dict[tuple[int, str], list[dict[str, float]]] = {(x, library): [] for x in sizes for library in libraries}
    for taken in range(rounds):
        for count, library in found:
            found[count, library].append(apart(first_batch, library, count, taken == 0))
    print("\n| images | loader | s to the first batch | peak MiB |\n|---|---|---|---|")
    panels: Panels = {("first_batch", field): {library: {} for library in libraries} for field in ("s", "bytes")}
    for (count, library), answers in found.items():
        seconds, peak = [answer["s"] for answer in answers], answers[0]["bytes"]
        panels["first_batch", "s"][library][count] = statistics.median(seconds)
        panels["first_batch", "bytes"][library][count] = peak
        print(f"| {number(count)} | {library} | {spread(seconds)} | {peak / 2**20:.1f} |")
    return panels


def slope(peaks: dict[int, float]) -> float:
    """Bytes a sample, from the smallest set to the largest."""
    small, large = min(peaks), max(peaks)
    return max(0.0, (peaks[large] - peaks[small]) / (large - small))


def draw(panels: Panels, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(LABELS), figsize=(15, 5.6), layout="constrained")
    for (varied, field), lines in panels.items():
        column, row = list(LABELS).index(varied), ("s", "bytes").index(field)
        panel, unit = axes[row, column], (1e-3, 2**20)[row]
        for library, points in lines.items():
            label = f"{library}, exponent {exponent(points):.2f}"
            panel.plot(list(points), [y / unit for y in points.values()], marker="o", label=label)
        panel.set(xscale="log", yscale="log")
        if varied == "dataset":  # else a step that is the same for all looks like a mountain
            panel.set_ylim(min(panel.get_ylim()) / 3, max(panel.get_ylim()) * 3)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.minorticks_off()
        panel.set_xticks(list(points), [number(value) for value in points])
        panel.set_xlabel(LABELS[varied])
        panel.set_ylabel("peak MiB" if row else "ms to the first batch" if varied == "first_batch" else "ms a step")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "lit-ssl"))
    return f"{cpu}, one thread; Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write seconds and bytes of each case here")
    parser.add_argument("--figure", type=Path, help="draw them here")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"{machine()}; median of {arguments.rounds} rounds, [least, greatest]\n", flush=True)
    panels = growth_of_steps(arguments.rounds) | growth_of_sets(arguments.rounds)
    print("\n| grows with | | exponent of time | exponent of memory |\n|---|---|---|---|")
    for varied, label in LABELS.items():
        for library, points in panels[varied, "s"].items():
            name = f"{library}, {'first batch' if varied == 'first_batch' else 'a step'}"
            print(f"| {label} | {name} | {exponent(points):.2f} | {exponent(panels[varied, 'bytes'][library]):.2f} |")
    cases: Cases = {}
    for (varied, field), lines in panels.items():
        for library, points in lines.items():
            for value, y in points.items():
                cases.setdefault(f"{varied}_{number(value)}_{field}", {})[library] = y
    lines = panels["first_batch", "bytes"]
    cases["memory_per_sample_bytes"] = {library: slope(peaks) for library, peaks in lines.items()}
    each = ", ".join(f"{library} {value:.2f}" for library, value in cases["memory_per_sample_bytes"].items())
    print(f"\nbytes of memory a sample of the largest set: {each}")
    if arguments.json:
        arguments.json.write_text(json.dumps(cases, indent=2) + "\n")
    if arguments.figure:
        draw(panels, arguments.figure)


if __name__ == "__main__":
    main()
