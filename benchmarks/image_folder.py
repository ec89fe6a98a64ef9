"""How many images a second come out of a folder of JPEG files as pairs of SimCLR views at 224 pixels.

    python benchmarks/image_folder.py --json image_folder.json

The script makes the folder: photographs of 500 x 375 pixels in the statistics of natural images, JPEG at quality 90.
``ImageFolder`` under a ``Trainer`` against lightly's ``LightlyDataset`` with ``SimCLRTransform``, and torchvision's
``ImageFolder`` with its v2 transforms, both in a ``DataLoader``: decode, crop, flip, colours at full strength,
grayscale and blur at 0.5, up to batches of float32 in [0, 1], at equal numbers of workers (cases ``workers_0`` to
``workers_2``). Nobody else makes a clean image of each photograph beside the views, so ``clean_images=False``; a row of
its own says what comes out with them. All take turns in every round; a round starts its own workers, and its time runs
from before that until its last batch is there. One thread a process: without workers all happens on one, with workers
the main process makes our views out of the crops that they decode. Before the rounds each library's pixels are compared
in distribution, and where our time goes is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import v2
from views import distance, images, machine, shares
from wall_clock import bare_trainer

from lit_ssl import ImageSpec
from lit_ssl.datamodules import ImageFolder
from lit_ssl.datamodules.decoding import CropPlan, decode_opened
from lit_ssl.random import sample_key
from lit_ssl.views import SimCLRViews

try:
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform
except ImportError as error:
    sys.exit(f"benchmarks/image_folder.py compares with lightly: pip install -r benchmarks/requirements.txt ({error})")

SIZE, BLUR, BATCH = 224, 0.5, 32
PHOTOS = 1024  # files; what lit_ssl reads in a round, a few seconds, in which starting workers counts for little
SHARE = {"lightly": 512, "torchvision": 96}  # what the others read in a round, for as long
VIEWS, SPEC = SimCLRViews(strength=1.0, blur=BLUR), ImageSpec(SIZE)

Take = Callable[[list[Tensor]], None]


def write_photos(root: Path) -> float:
    """Makes the folder, of 256 photographs and their mirrored images; returns the mean size of the files in kB."""
    (root / "all").mkdir()
    photos = images(PHOTOS // 4, 500)[:, :, 60:435]
    for way, mirrored in enumerate(((), (2,), (3,), (2, 3))):
        for i, photo in enumerate(photos.flip(mirrored).permute(0, 2, 3, 1)):
            Image.fromarray(photo.contiguous().numpy()).save(root / "all" / f"{i:03}-{way}.jpg", quality=90)
    return statistics.mean(path.stat().st_size for path in root.rglob("*.jpg")) / 1000


class Views(LightningModule):
    """Trains nothing: takes the views and the time at which an epoch begins and ends."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.take, self.views, self.spec, self.seconds = take, VIEWS, SPEC, 0.0

    def on_train_epoch_start(self) -> None:
        self.seconds -= time.perf_counter()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.take(batch["views"])

    def on_train_epoch_end(self) -> None:
        self.seconds += time.perf_counter()

    def configure_optimizers(self) -> None:
        return None


def ours(root: Path, workers: int, number: int, take: Take, clean_images: bool = False) -> float:
    module = Views(take)
    data = ImageFolder(root, BATCH, workers, seed=number, clean_images=clean_images, val_fraction=0, labels="none")
    trainer = bare_trainer(max_epochs=1)
    trainer.callbacks.clear()  # type: ignore[attr-defined]  # stable-pretraining, if installed, adds its own to any trainer
    trainer.fit(module, data)
    return PHOTOS / module.seconds


def timed(dataset: Dataset[Any], share: int, workers: int, number: int, take: Take) -> float:
    """Images a second of a share of a data set whose samples are (pair of views, ...)."""
    order = torch.randperm(PHOTOS, generator=torch.Generator().manual_seed(number))[:share].tolist()
    torch.manual_seed(number)
    begin = time.perf_counter()
    for views, *_ in DataLoader(Subset(dataset, order), BATCH, num_workers=workers):
        take(views)
    return share / (time.perf_counter() - begin)


def lightlys(root: Path, workers: int, number: int, take: Take) -> float:
    transform = SimCLRTransform(input_size=SIZE, cj_strength=1.0, gaussian_blur=BLUR, normalize=None)
    return timed(LightlyDataset(str(root), transform=transform), SHARE["lightly"], workers, number, take)


def torchvisions(root: Path, workers: int, number: int, take: Take) -> float:
    one = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (SIZE // 20) + 1, (0.1, 2.0))], BLUR),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    to_image = v2.PILToTensor()

    def pair(photo: Image.Image) -> list[Tensor]:
        image = to_image(photo)
        return [one(image), one(image)]

    return timed(TorchvisionFolder(str(root), transform=pair), SHARE["torchvision"], workers, number, take)


WITH_CLEAN = "lit_ssl with clean images"
LIBRARIES: dict[str, Callable[[Path, int, int, Take], float]] = {
    "lit_ssl": ours,
    WITH_CLEAN: partial(ours, clean_images=True),
    "lightly": lightlys,
    "torchvision": torchvisions,
}


def ignore(views: list[Tensor]) -> None:
    """What a round does with its views."""


class Pixels:
    """Adds up what views consist of."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []
        self.moments: list[Tensor] = []

    def __call__(self, views: list[Tensor]) -> None:
        for view in views:
            wanted = (BATCH, 3, SIZE, SIZE)
            if view.shape != wanted or view.dtype != torch.float32 or len(views) != 2:
                sys.exit(f"{len(views)} views of {tuple(view.shape)}, {view.dtype}; 2 of {wanted} were asked for")
            slope = (view[..., 1:] - view[..., :-1]).abs().mean()  # sharpness
            self.moments.append(torch.stack([view.mean(), view.std(), slope]))
            self.shares.append(shares([view]))

    def summary(self) -> tuple[list[float], Tensor]:
        return torch.stack(self.moments).mean(0).tolist(), torch.stack(self.shares).mean(0)


def compare(root: Path) -> None:
    """Prints how the pixels of the libraries' views are distributed."""
    found: dict[str, tuple[list[float], Tensor]] = {}
    again: dict[str, tuple[list[float], Tensor]] = {}
    for name, run in LIBRARIES.items():
        for number, results in ((1, found), (2, again)):
            pixels = Pixels()
            run(root, 0, number, pixels)
            results[name] = pixels.summary()
    print("| library | mean | std | mean step to the next pixel | histogram to lit_ssl | to itself, drawn again |")
    print("|---" * 6 + "|")
    for name, (moments, histogram) in found.items():
        moments = [(a + b) / 2 for a, b in zip(moments, again[name][0], strict=True)]
        to = [distance(histogram, other) for other in (found["lit_ssl"][1], again[name][1])]
        print(f"| {name} | {' | '.join(f'{m:.4f}' for m in moments)} | {to[0]:.4f} | {to[1]:.4f} |", flush=True)


def breakdown(root: Path) -> None:
    """Prints milliseconds an image of what lit_ssl does with it, on one thread: medians of single images."""
    plan, key = CropPlan(VIEWS.groups(SPEC), 0), sample_key(0, 0, torch.arange(BATCH))
    square, plain = torch.zeros(BATCH, 3, 256, 256, dtype=torch.uint8), SimCLRViews(strength=1.0, blur=0.0)
    paths = sorted(root.rglob("*.jpg"))[:BATCH]
    times: dict[str, list[float]] = {}

    def clock(name: str, count: int, work: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = work(*arguments)
        times.setdefault(name, []).append(1000 * (time.perf_counter() - begin) / count)
        return result

    for _ in range(3):
        drawn = clock("draws of crops", BATCH, plan.draw, 0, dict.fromkeys(range(BATCH), (375, 500)))
        decoded = []
        for i, path in enumerate(paths):
            with clock("open", 1, Image.open, path) as opened:
                clock("decode", 1, opened.load)
            with Image.open(path) as opened:
                clock("decode and crops", 1, decode_opened, opened, 256, 3, drawn[i], False)
            with Image.open(path) as opened:
                decoded.append(clock("decode, crops and clean image", 1, decode_opened, opened, 256, 3, drawn[i]))
        entries = clock("batch of crops", BATCH, plan.entries, [crops for _, crops in decoded])
        crops = {"view": entries["crops/view"].transpose(0, 1).flatten(0, 1)}
        clock("colour", BATCH, plain, square, key, SPEC, torch.float32, crops)
        clock("colour and blur", BATCH, VIEWS, square, key, SPEC, torch.float32, crops)
    print("\n| of lit_ssl | ms an image |\n|---|---|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write images a second of each case and library here")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: 5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="cases (default: 0 1 2)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    medians: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print(f"{machine()}\n{PHOTOS} files of 500 x 375, {write_photos(root):.0f} kB on average\n", flush=True)
        compare(root)
        breakdown(root)
        print(f"\nMedian of {arguments.rounds} rounds, [least, greatest]\n")
        print("| workers | library | images/s | ratio of lit_ssl, median of rounds |\n|---|---|---|---|")
        for workers in arguments.workers:
            rates: dict[str, list[float]] = {name: [] for name in LIBRARIES}
            for number in range(arguments.rounds):
                for name, run in LIBRARIES.items():
                    rates[name].append(run(root, workers, number, ignore))
            medians[f"workers_{workers}"] = {n: statistics.median(r) for n, r in rates.items() if n != WITH_CLEAN}
            for name, rate in rates.items():
                ratio = statistics.median(a / b for a, b in zip(rates["lit_ssl"], rate, strict=True))
                spread = f"{statistics.median(rate):,.0f} [{min(rate):,.0f}, {max(rate):,.0f}]"
                print(f"| {workers} | {name} | {spread} | {ratio:.1f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
