"""How many images a second become pairs of SimCLR views, on one CPU thread, from uint8 in memory.

    python benchmarks/views.py --json views.json

Against lightly's ``SimCLRTransform`` (PIL images, one by one) and torchvision's v2 transforms (tensors, one by one),
with the same operations and probabilities. All three take turns in every round, so that whatever else the machine does
hits all alike. 32 pixels without blur, as for CIFAR, and 224 pixels with blur at 0.5; colours at full strength in both.
In the same run the distributions of the pixels that come out are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views import SimCLRViews

try:
    from lightly.transforms import SimCLRTransform
except ImportError as error:
    sys.exit(f"benchmarks/views.py compares with lightly: pip install -r benchmarks/requirements.txt ({error})")

BATCH = {32: 512, 224: 32}  # images a call of lit_ssl
SINGLES = {32: 48, 224: 6}  # images a round of those that go one by one
POOL = {32: 1024, 224: 96}  # images whose views' pixels are compared
BLUR = {32: 0.0, 224: 0.5}
BINS = 64

Pairs = Callable[[Tensor, int], list[Tensor]]  # uint8 (B, 3, S, S) and a number to draw by, to two (B, 3, S, S)


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


def ours(size: int) -> Pairs:
    views, spec = SimCLRViews(strength=1.0, blur=BLUR[size]), ImageSpec(size)

    def pairs(image: Tensor, number: int) -> list[Tensor]:
        return views(image, sample_key(number, 0, torch.arange(len(image))), spec, torch.float32)

    return pairs


def lightlys(size: int) -> Pairs:
    transform = SimCLRTransform(input_size=size, cj_strength=1.0, gaussian_blur=BLUR[size], normalize=None)
    to_pil = v2.ToPILImage()

    def pairs(image: Tensor, number: int) -> list[Tensor]:
        torch.manual_seed(number)
        both = [transform(to_pil(one)) for one in image]
        return [torch.stack(views) for views in zip(*both, strict=True)]

    return pairs


def torchvisions(size: int) -> Pairs:
    steps = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], BLUR[size])] if BLUR[size] else []),
        v2.ToDtype(torch.float32, scale=True),
    ]
    transform = v2.Compose(steps)

    def pairs(image: Tensor, number: int) -> list[Tensor]:
        torch.manual_seed(number)
        return [torch.stack([transform(one) for one in image]) for _ in range(2)]

    return pairs


LIBRARIES: dict[str, Callable[[int], Pairs]] = {"lit_ssl": ours, "lightly": lightlys, "torchvision": torchvisions}


def speeds(size: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each library in each round, after a round that is not counted."""
    pool = images(BATCH[size], size)
    makers = {name: make(size) for name, make in LIBRARIES.items()}
    result: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(-1, rounds):
        for name, pairs in makers.items():
            image = pool if name == "lit_ssl" else pool[: SINGLES[size]]
            calls = 3 if name == "lit_ssl" else 1
            begin = time.perf_counter()
            for call in range(calls):
                pairs(image, 10 * number + call + 10)
            elapsed = time.perf_counter() - begin
            if number >= 0:
                result[name].append(calls * len(image) / elapsed)
    return result


def distributions(size: int) -> tuple[dict[str, tuple[float, float, Tensor]], dict[str, Tensor]]:
    """Mean, standard deviation and histogram of the pixels of each library's views; and of a second draw of each."""
    pool = images(POOL[size], size)
    once, again = {}, {}
    for name, make in LIBRARIES.items():
        pairs = make(size)
        first, second = torch.cat(pairs(pool, 1)), torch.cat(pairs(pool, 2))
        once[name] = (first.mean().item(), first.std().item(), histogram(first))
        again[name] = histogram(second)
    return once, again


def histogram(x: Tensor) -> Tensor:
    """Shares of the pixels in 64 equal bins, each channel on its own: (3, 64)."""
    return torch.stack([torch.histc(channel, BINS, 0, 1) / channel.numel() for channel in x.unbind(1)])


def distance(a: Tensor, b: Tensor) -> float:
    """Half of the sum of absolute differences (total variation, 0 to 1), averaged over channels."""
    return ((a - b).abs().sum(1) / 2).mean().item()


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightly", "lit-ssl"))
    return f"{cpu}, one thread; Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write images a second of each size and library here")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed (default: 9)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    torch.set_num_threads(1)
    print(f"{machine()}; median of {arguments.rounds} rounds, [least, greatest]\n", flush=True)

    medians: dict[str, dict[str, float]] = {}
    print("| views | library | images/s | ratio of lit_ssl, median of rounds |\n|---|---|---|---|")
    for size in (32, 224):
        rates = speeds(size, arguments.rounds)
        medians[str(size)] = {name: statistics.median(rate) for name, rate in rates.items()}
        for name, rate in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates["lit_ssl"], rate, strict=True))
            kind = f"{size} px, {f'blur {BLUR[size]}' if BLUR[size] else 'no blur'}"
            median, low, high = statistics.median(rate), min(rate), max(rate)
            print(f"| {kind} | {name} | {median:,.0f} [{low:,.0f}, {high:,.0f}] | {ratio:.1f} |", flush=True)

    print("\nPixels of the views; histogram distance is total variation over 64 bins, from 0 to 1\n")
    print(
        "| views | library | mean | std | to lit_ssl | to torchvision | to itself, drawn again |\n" + "|---" * 7 + "|"
    )
    for size in (32, 224):
        once, again = distributions(size)
        for name, (mean, std, shares) in once.items():
            to = [distance(shares, once[other][2]) for other in ("lit_ssl", "torchvision")]
            own = distance(shares, again[name])
            print(
                f"| {size} px | {name} | {mean:.4f} | {std:.4f} | {to[0]:.4f} | {to[1]:.4f} | {own:.4f} |", flush=True
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
