"""How many images a second arrive as shuffled uint8 batches of 256, from sets that fit in memory.

    pip install -r benchmarks/requirements.txt
    python benchmarks/loader.py --json loader.json
    python benchmarks/loader.py --device cuda

Generated sets of the size of MNIST (60,000 of 28 x 28, gray) and of CIFAR-10 (50,000 of 32 x 32, RGB) are written to a
temporary folder as torchvision expects them. This package reads that folder with its data modules. Against it stand
torchvision's ``MNIST`` and ``CIFAR10`` with ``PILToTensor`` and torch's ``DataLoader`` (shuffled, workers kept from
epoch to epoch) with 0, 1 and 2 worker processes, of which the fastest counts; and lightly's ``LightlyDataset`` around
the same, with the number of workers at which torchvision's first epoch was fastest. A turn is one whole epoch, from
asking for its first batch to having the last on the device. All take turns in every round. The process that receives
has one thread (``--threads``), workers one each.

The first epoch of each is not timed. In it every batch is compared with the images that were written, pixel by pixel:
each image holds its own number in its first three bytes, no number comes twice, and only those of the last incomplete
batch, which all drop, do not come.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import platform
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import PILToTensor

from lit_ssl.datamodules import CIFAR10, MNIST

try:
    from lightly.data import LightlyDataset
except ImportError as error:
    sys.exit(f"benchmarks/loader.py compares with lightly: pip install -r benchmarks/requirements.txt ({error})")

SETS = {"mnist": ("MNIST", 60_000, (1, 28, 28)), "cifar": ("CIFAR10", 50_000, (3, 32, 32))}
HELD_OUT = 10_000
BATCH = 256
WORKERS = (0, 1, 2)

Epochs = Callable[[int], Iterator[Tensor]]  # the number of an epoch to its uint8 (B, C, H, W), on the device


def generated(count: int, shape: tuple[int, ...]) -> Tensor:
    """uint8 images (count, *shape) of noise; the first three bytes of each are its number, the highest first."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    number = torch.arange(count)
    images.view(count, -1)[:, :3] = torch.stack([number >> 16, number >> 8 & 255, number & 255], 1).to(torch.uint8)
    return images


def write_mnist(images: Tensor, root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", len(images)), ("t10k", HELD_OUT)):
        pixels, labels = images[:count].numpy(), bytes(row % 10 for row in range(count))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels)


def write_cifar(images: Tensor, root: Path) -> None:
    """Also has torchvision take the checksums of these files for the right ones."""
    source: Any = datasets.CIFAR10
    folder = root / source.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, rows: Tensor) -> list[str]:
        return write(name, {"data": rows.flatten(1).numpy(), "labels": [row % 10 for row in range(len(rows))]})

    source.train_list = [batch(f"data_batch_{i + 1}", rows) for i, rows in enumerate(images.chunk(5))]
    source.test_list = [batch("test_batch", images[:HELD_OUT])]
    name, checksum = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    source.meta = {"filename": name, "key": "label_names", "md5": checksum}


def ours(name: str, root: Path, device: torch.device) -> Epochs:
    data = {"MNIST": MNIST, "CIFAR10": CIFAR10}[name](root=root, batch_size=BATCH, seed=0)
    data.setup("fit")
    loader = data.train_dataloader()

    def epochs(number: int) -> Iterator[Tensor]:
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        for batch in loader:
            yield batch["image"].to(device)

    return epochs


def torchs(dataset: Any, workers: int, device: torch.device) -> Epochs:
    """torch's loader of a set whose samples start with the image."""
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epochs(number: int) -> Iterator[Tensor]:
        for image, *_ in loader:
            yield image.to(device, non_blocking=True)

    return epochs


def prove(epochs: Epochs, images: Tensor) -> float:
    """Compare one epoch with the images that were written. Returns seconds, from the first batch on.

    Raises:
        RuntimeError: a batch is not uint8 of the right shape, a pixel differs, or an image comes twice or not at all.
    """
    seen, begin = [], 0.0
    for batch in epochs(0):
        begin = begin or time.perf_counter()
        if batch.dtype != torch.uint8 or batch.shape != (BATCH, *images.shape[1:]):
            raise RuntimeError(f"a batch is {batch.dtype} {tuple(batch.shape)}")
        batch = batch.cpu()
        high, middle, low = batch.flatten(1)[:, :3].long().unbind(1)
        number = high << 16 | middle << 8 | low
        if not torch.equal(batch, images[number]):
            raise RuntimeError("pixels differ from those that were written")
        seen.append(number)
    elapsed = time.perf_counter() - begin
    numbers = torch.cat(seen)
    if len(numbers) != len(images) // BATCH * BATCH or len(numbers.unique()) != len(numbers):
        raise RuntimeError(f"{len(numbers)} images, {len(numbers.unique())} different ones, of {len(images)}")
    if bool((numbers.diff() > 0).double().mean() > 0.6):
        raise RuntimeError("the epoch is not shuffled")
    return elapsed


def timed(epochs: Epochs, number: int, device: torch.device) -> float:
    """Images a second of one epoch."""
    begin, count = time.perf_counter(), 0
    for image in epochs(number):
        count += len(image)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - begin)


def contenders(case: str, images: Tensor, root: Path, device: torch.device) -> dict[str, Epochs]:
    """By library and number of workers, each having gone through the epoch that is not timed."""
    name, *_ = SETS[case]
    dataset = getattr(datasets, name)(root, train=True, transform=PILToTensor())
    found = {"lit_ssl, 0 workers": ours(name, root, device)}
    prove(found["lit_ssl, 0 workers"], images)
    first = {}
    for workers in WORKERS:
        found[f"torchvision, {workers} workers"] = epochs = torchs(dataset, workers, device)
        first[workers] = prove(epochs, images)
    best = min(first, key=lambda workers: first[workers])
    found[f"lightly, {best} workers"] = epochs = torchs(LightlyDataset.from_torch_dataset(dataset), best, device)
    prove(epochs, images)
    return found


def machine(device: torch.device) -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightly", "lit-ssl"))
    return f"{cpu}{gpu}, {torch.get_num_threads()} thread(s); Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write images a second of each set and library here")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each that are timed (default: 3)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the receiving process (default: 1)")
    arguments = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    torch.set_num_threads(arguments.threads)
    print(f"{machine(arguments.device)}; median of {arguments.rounds} epochs, [least, greatest]\n", flush=True)
    print("| set | loader | images/s | ratio of lit_ssl, median of rounds |\n|---|---|---|---|", flush=True)

    cases: dict[str, dict[str, float]] = {}
    for case, (_, count, shape) in SETS.items():
        images = generated(count, shape)
        with tempfile.TemporaryDirectory() as folder:
            {"mnist": write_mnist, "cifar": write_cifar}[case](images, Path(folder))
            loaders = contenders(case, images, Path(folder), arguments.device)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(1, arguments.rounds + 1):
            for name, epochs in loaders.items():
                rates[name].append(timed(epochs, number, arguments.device))
        cases[case] = {}
        (mine,) = (values for name, values in rates.items() if name.startswith("lit_ssl"))
        for name, values in rates.items():
            median, library = statistics.median(values), name.split(",")[0]
            cases[case][library] = max(median, cases[case].get(library, 0.0))
            ratio = statistics.median(a / b for a, b in zip(mine, values, strict=True))
            spread = f"{median:,.0f} [{min(values):,.0f}, {max(values):,.0f}]"
            print(f"| {case} | {name} | {spread} | {ratio:.1f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
