"""How many images a second become views, from uint8 in memory, on one CPU thread and on two.

    python benchmarks/views.py --json views.json

- ``32``: two SimCLR views at 32 pixels without blur, as for CIFAR, colours at full strength;
- ``224``: the same at 224 pixels, with blur at 0.5;
- ``multicrop``: DINO's two views at 224 and six at 96, with its blur and solarization;
- ``mae_224``: one random resized crop and a flip.

Against lightly's transforms (PIL images, one by one), torchvision's v2 transforms (tensors, one by one) and kornia's
(a batch at once), with the same operations and probabilities. lightly resizes bicubically for DINO and MAE; we always
do so bilinearly, with antialiasing. All take turns in every round, so that whatever else the machine does hits all
alike. ``..._2threads``: two threads for those that take a batch; for the others two worker processes of a
``DataLoader``, each with one thread, which is how they are meant to be run. In the same run the distributions of the
pixels that come out are compared. With numba (our extra of that name) a CPU makes our views by compiled loops; rows of
their own say what it makes without.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views import MAEViews, MultiCropViews, SimCLRViews, View
from lit_ssl.views.fused import available

try:
    import kornia.augmentation as K
    from lightly.transforms import DINOTransform, MAETransform, SimCLRTransform
except ImportError as error:
    sys.exit(f"benchmarks/views.py has to have its peers: pip install -r benchmarks/requirements.txt ({error})")

BINS = 64
PACKAGES = ("torch", "torchvision", "lightly", "kornia", "lit-ssl")
WITHOUT = "lit_ssl without numba"
Views = list[Tensor]


@dataclass(frozen=True)
class Look:
    """One view as torchvision and kornia have it: as :class:`lit_ssl.views.Recipe`, with its size."""

    size: int
    scale: tuple[float, float]
    colour: tuple[float, float, float, float] | None = None
    blur: float = 0.0
    solarize: float = 0.0


def simclr(size: int, blur: float) -> list[Look]:
    return [Look(size, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), blur)] * 2


DINO_COLOUR = (0.4, 0.4, 0.2, 0.1)
DINO = [Look(224, (0.4, 1.0), DINO_COLOUR, 1.0), Look(224, (0.4, 1.0), DINO_COLOUR, 0.1, 0.2)]
DINO += [Look(96, (0.05, 0.4), DINO_COLOUR, 0.5)] * 6


@dataclass(frozen=True)
class Case:
    """What is timed: images of ``size``, ``batch`` for those that take a batch, ``singles`` for those that do not."""

    size: int
    batch: int
    singles: int
    views: View
    lightly: Callable[[], Callable[[Any], Any]]
    looks: list[Look]


CASES = {
    "32": Case(
        *(32, 512, 48),
        SimCLRViews(strength=1.0, blur=0.0),
        lambda: SimCLRTransform(input_size=32, cj_strength=1.0, gaussian_blur=0.0, normalize=None),
        simclr(32, 0.0),
    ),
    "224": Case(
        *(224, 32, 6),
        SimCLRViews(),
        lambda: SimCLRTransform(input_size=224, cj_strength=1.0, gaussian_blur=0.5, normalize=None),
        simclr(224, 0.5),
    ),
    "multicrop": Case(224, 16, 4, MultiCropViews(local_views=6), lambda: DINOTransform(normalize=None), DINO),
    "mae_224": Case(
        224,
        64,
        24,
        MAEViews(),
        lambda: MAETransform(normalize={"mean": [0] * 3, "std": [1] * 3}),
        [Look(224, (0.2, 1))],
    ),
}


def images(count: int, size: int) -> Tensor:
    """Pictures with the statistics of photographs: amplitude falls as 1 / frequency, colours go together, edges."""
    generator = torch.Generator().manual_seed(0)
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    amplitude = 1 / (fy**2 + fx**2).sqrt().clamp(min=1 / size)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) * amplitude
    field = torch.fft.irfft2(spectrum, s=(size, size))
    field /= field.std(dim=(1, 2, 3), keepdim=True)
    shape = torch.fft.irfft2(spectrum.roll(1, 0)[:, :1] * amplitude, s=(size, size)) > 0
    tint = torch.randn(count, 3, 1, 1, generator=generator)
    mix = torch.tensor([[1.0, 0.35, 0.15], [1.0, 0.0, -0.3], [1.0, -0.35, 0.2]])  # light, and a little of two colours
    field = torch.einsum("dc,bchw->bdhw", mix, field + 0.8 * shape * tint)
    return (255 * torch.sigmoid(1.2 * field)).round().to(torch.uint8)


def ours(case: Case) -> Callable[[Tensor, int], Views]:
    spec = ImageSpec(case.size)
    return lambda image, n: case.views(image, sample_key(n, 0, torch.arange(len(image))), spec, torch.float32)


def without_numba(make: Callable[[Tensor, int], Views]) -> Callable[[Tensor, int], Views]:
    def by_torch(image: Tensor, n: int) -> Views:
        with mock.patch("lit_ssl.views.augment.available", return_value=False):
            return make(image, n)

    return by_torch


def kornias(case: Case) -> Callable[[Tensor, int], Views]:
    def of(look: Look) -> Any:
        side, taps = look.size, 2 * max(1, look.size // 20) + 1
        return torch.nn.Sequential(
            K.RandomResizedCrop((side, side), scale=look.scale),
            K.RandomHorizontalFlip(p=0.5),
            *([K.ColorJitter(*look.colour, p=0.8), K.RandomGrayscale(p=0.2)] if look.colour else []),
            *([K.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=look.blur)] if look.blur else []),
            *([K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=look.solarize)] if look.solarize else []),
        )

    views = [of(look) for look in case.looks]

    def make(image: Tensor, n: int) -> Views:
        torch.manual_seed(n)
        with torch.no_grad():
            image = image.to(torch.float32) / 255
            return [view(image) for view in views]

    return make


def torchvision_transform(case: Case) -> Callable[[Tensor], Views]:
    def of(look: Look) -> Any:
        taps = 2 * max(1, look.size // 20) + 1
        colour = [v2.RandomApply([v2.ColorJitter(*look.colour)], 0.8), v2.RandomGrayscale(0.2)] if look.colour else []
        return v2.Compose(
            [
                v2.RandomResizedCrop(look.size, scale=look.scale, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                *colour,
                *([v2.RandomApply([v2.GaussianBlur(taps, (0.1, 2.0))], look.blur)] if look.blur else []),
                *([v2.RandomSolarize(128, look.solarize)] if look.solarize else []),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    views = [of(look) for look in case.looks]
    return lambda image: [view(image) for view in views]


class Transformed(torch.utils.data.Dataset[Views]):
    """A data set of ``images`` through a transform; for lightly, whose transforms take PIL images, of those."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any], pil: bool) -> None:
        self.images, self.transform = images, transform
        self.before = v2.ToPILImage() if pil else lambda image: image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Views:
        return list(self.transform(self.before(self.images[i])))


def one_by_one(transform: Callable[[Any], Any], pil: bool, threads: int) -> Callable[[Tensor, int], Views]:
    loaders: dict[int, Any] = {}

    def make(image: Tensor, n: int) -> Views:
        torch.manual_seed(n)
        data = Transformed(image, transform, pil)
        if threads == 1:
            return [torch.stack(view) for view in zip(*(data[i] for i in range(len(data))), strict=True)]
        loader = loaders.setdefault(
            len(image), DataLoader(data, batch_size=-(-len(image) // 4), num_workers=threads, persistent_workers=True)
        )
        return [torch.cat(view) for view in zip(*loader, strict=True)]

    return make


def makers(case: Case, threads: int) -> dict[str, Callable[[Tensor, int], Views]]:
    return {
        "lit_ssl": ours(case),
        **({WITHOUT: without_numba(ours(case))} if available() else {}),
        "lightly": one_by_one(case.lightly(), True, threads),
        "torchvision": one_by_one(torchvision_transform(case), False, threads),
        "kornia": kornias(case),
    }


def speeds(case: Case, rounds: int, threads: int) -> dict[str, list[float]]:
    """Images a second of each library in each round, after a round that is not counted."""
    pool, made = images(case.batch, case.size), makers(case, threads)
    result: dict[str, list[float]] = {name: [] for name in made}
    for number in range(-1, rounds):
        for name, make in made.items():
            single = name in ("lightly", "torchvision")
            image = pool[: case.singles * threads] if single else pool
            calls = 3 if name == "lit_ssl" else 1
            begin = time.perf_counter()
            for call in range(calls):
                make(image, 100 * number + call + 100)
            elapsed = time.perf_counter() - begin
            if number >= 0:
                result[name].append(calls * len(image) / elapsed)
    return result


def shares(views: Views) -> Tensor:
    """Shares of the views' pixels in 64 equal bins, each channel on its own: (3, 64)."""
    channels = torch.cat([view.transpose(0, 1).flatten(1) for view in views], dim=1)
    return torch.stack([torch.histc(channel, BINS, 0, 1) / channel.numel() for channel in channels])


def distance(a: Tensor, b: Tensor) -> float:
    """Half of the sum of absolute differences (total variation, 0 to 1), averaged over channels."""
    return ((a - b).abs().sum(1) / 2).mean().item()


def same_work(name: str, case: Case) -> Iterator[str]:
    """Rows of a table: shapes of the views, and how far the distributions of their pixels are from ours."""
    pool = images(1024 if case.size == 32 else 48, case.size)
    made = makers(case, 1)
    mine = made["lit_ssl"](pool, 1)
    for library, make in made.items():
        views = make(pool, 2)
        assert [view.shape for view in views] == [view.shape for view in mine], library
        pixels = torch.cat([view.flatten() for view in views])
        to_ours = distance(shares(views), shares(mine))
        yield f"| {name} | {library} | {pixels.mean():.4f} | {pixels.std():.4f} | {to_ours:.4f} |"


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    packages += f", numba {version('numba')}" if available() else "; no numba, with which our views would be faster"
    return f"{cpu}; Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, choices=[1, 2], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: 7)")
    parser.add_argument("--json", type=Path, help="write images a second of each case and library here")
    a = parser.parse_args()
    if a.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {a.rounds}")
    print(f"{machine()}; median of {a.rounds} rounds, [least, greatest]\n", flush=True)
    medians: dict[str, dict[str, float]] = {}
    print("| views | library | images/s | ratio of lit_ssl, median of rounds |\n|---|---|---|---|")
    for threads in a.threads:
        torch.set_num_threads(threads)
        for name in a.cases:
            rates = speeds(CASES[name], a.rounds, threads)
            case = name if threads == 1 else f"{name}_{threads}threads"
            medians[case] = {library: statistics.median(rate) for library, rate in rates.items() if library != WITHOUT}
            for library, rate in rates.items():
                ratio = statistics.median(x / y for x, y in zip(rates["lit_ssl"], rate, strict=True))
                spread = f"{statistics.median(rate):,.1f} [{min(rate):,.1f}, {max(rate):,.1f}]"
                print(f"| {case} | {library} | {spread} | {ratio:.1f} |", flush=True)
    torch.set_num_threads(1)
    print("\nPixels of the views; distance is total variation over 64 bins, 0 to 1 (of lit_ssl: to a second draw)\n")
    print("| views | library | mean | std | distance to lit_ssl |\n|---|---|---|---|---|")
    for name in a.cases:
        for row in same_work(name, CASES[name]):
            print(row, flush=True)
    if a.json:
        a.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
