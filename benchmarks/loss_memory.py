"""What a large batch costs: peak memory and time of forward and backward of NT-Xent, dense and in chunks.

    pip install -r benchmarks/requirements.txt
    python benchmarks/loss_memory.py --json loss_memory.json --figure docs/loss_memory.png

Each loss at each batch has a process of its own. Peak memory is what the process's resident set rises by, over what it
holds before the first step. Time is the process's own (with one thread, the wall time on an idle machine), so that
other work on the machine hardly matters; the processes of one batch take turns in an order that rotates. A loss that
keeps all similarities is left out where they would not fit into ``--limit`` GiB.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from apart import forget_peak, peak_memory

BATCHES = (1024, 2048, 4096, 8192, 16384, 32768)
DIM, TEMPERATURE = 128, 0.1
MANY = 8192  # from a larger batch on, one step is timed
LIBRARIES = ("lightly", "lit_ssl_dense", "lit_ssl")
LABELS = {"lightly": "lightly NTXentLoss", "lit_ssl_dense": "lit_ssl nt_xent", "lit_ssl": "lit_ssl nt_xent, in chunks"}
MATRICES = {"lightly": 5, "lit_ssl_dense": 2, "lit_ssl": 0}  # of (2 B)^2 float32 at once, to leave out what is too big
Cases = dict[str, dict[str, float]]


def worker(library: str, batch: int, chunk_size: int, threads: int) -> None:
    """Answer each line of stdin with one step: its seconds, and by how many bytes the resident set has risen."""
    import torch

    torch.set_num_threads(threads)
    if library == "lightly":
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(temperature=TEMPERATURE)
    else:
        from functools import partial

        from lit_ssl.losses import nt_xent

        loss = partial(nt_xent, temperature=TEMPERATURE, chunk_size=chunk_size if library == "lit_ssl" else None)

    def step(rows: int) -> float:
        generator = torch.Generator().manual_seed(0)
        z1, z2 = (torch.randn(rows, DIM, generator=generator, requires_grad=True) for _ in range(2))
        begin = time.process_time()
        loss(z1, z2).backward()
        return time.process_time() - begin

    step(32)  # starts threads and allocators
    before = forget_peak()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"s": step(batch), "bytes": peak_memory() - before}), flush=True)


class Worker:
    """A process with one loss at one batch."""

    def __init__(self, library: str, batch: int, arguments: argparse.Namespace) -> None:
        options = ["--chunk_size", str(arguments.chunk_size), "--threads", str(arguments.threads)]
        command = [sys.executable, __file__, "--worker", library, str(batch), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{' '.join(self.process.args)} ended with {self.process.wait()}")  # type: ignore[arg-type]
        return line

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return json.loads(self._answer())

    def close(self) -> None:
        self.process.communicate()


def measure(batch: int, libraries: list[str], arguments: argparse.Namespace) -> Cases:
    """Peak bytes and median, least and greatest seconds, by library, at one batch."""
    workers = {library: Worker(library, batch, arguments) for library in libraries}
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {library: [] for library in libraries}
    rounds = arguments.rounds if batch <= MANY else 1
    for number in range(rounds + 1):
        shift = number % len(libraries)
        for library in libraries[shift:] + libraries[:shift]:
            answer = workers[library].step()
            if number:  # the first step warms up, and has the peak of a single one
                seconds[library].append(answer["s"])
            else:
                peaks[library] = int(answer["bytes"])
    for process in workers.values():
        process.close()
    return {
        f"{batch}_bytes": dict(peaks),
        f"{batch}_s": {library: statistics.median(values) for library, values in seconds.items()},
        f"{batch}_s_least": {library: min(values) for library, values in seconds.items()},
        f"{batch}_s_greatest": {library: max(values) for library, values in seconds.items()},
    }


def fits(library: str, batch: int, limit: float) -> bool:
    return MATRICES[library] * 4 * (2 * batch) ** 2 <= limit * 2**30


def draw(cases: Cases, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for library in LIBRARIES:
        found = {int(case.split("_")[0]): row.get(library) for case, row in cases.items() if case.endswith("_bytes")}
        points = {batch: peak / 2**20 for batch, peak in found.items() if peak is not None}
        axes.plot(list(points), list(points.values()), marker="o", label=LABELS[library])
    axes.set(xscale="log", yscale="log", xlabel="batch (pairs)", ylabel="peak memory of a step (MiB)")
    axes.set_xticks(BATCHES, [f"{batch // 1024}k" for batch in BATCHES], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.machine()
    return f"{cpu}; Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "lightly", "lit-ssl")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {case: {library: figure}} here")
    parser.add_argument("--figure", type=Path, help="draw peak memory against batch here")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="pairs a batch (default: 1k to 32k)")
    parser.add_argument("--chunk_size", type=int, default=256, help="rows at once (default: 256)")
    parser.add_argument("--rounds", type=int, default=5, help=f"timed steps of each up to {MANY} pairs (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: 1)")
    parser.add_argument("--limit", type=float, default=8.0, help="GiB that a loss without chunks may take (default: 8)")
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker[0], int(arguments.worker[1]), arguments.chunk_size, arguments.threads)
        return
    for name in ("chunk_size", "rounds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    print(f"{machine()}; {arguments.threads} thread(s), D = {DIM}, float32, chunks of {arguments.chunk_size} rows")
    print(f"median of {arguments.rounds} steps (of 1 above {MANY} pairs), [least, greatest]\n")
    print("| batch | loss | peak MiB | s a step | peak of lightly's | time of lightly's |\n|---|---|---|---|---|---|")
    cases: Cases = {}
    for batch in arguments.batches:
        libraries = [library for library in LIBRARIES if fits(library, batch, arguments.limit)]
        cases |= measure(batch, libraries, arguments)
        peaks, times = cases[f"{batch}_bytes"], cases[f"{batch}_s"]
        for library in libraries:
            least, greatest = (cases[f"{batch}_s_{end}"][library] for end in ("least", "greatest"))
            spread = f"{times[library]:.2f} [{least:.2f}, {greatest:.2f}]"
            against = (
                f"{values[library] / values['lightly']:.3f}" if "lightly" in values else "" for values in (peaks, times)
            )
            print(
                f"| {batch} | {LABELS[library]} | {peaks[library] / 2**20:.0f} | {spread} | {' | '.join(against)} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(cases, indent=2) + "\n")
    if arguments.figure:
        draw(cases, arguments.figure)


if __name__ == "__main__":
    main()
