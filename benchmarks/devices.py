"""One run, two numbers of processes: loss curves of one and of two on one plot, how far apart they are, and step times.

    python benchmarks/devices.py --json devices.json --figure docs/devices.png

``lit-ssl fit`` pretrains SimCLR on the images that come with the package, with the same global batch on one and on two
processes, one thread each. Whatever differs between the curves is rounding; ``--precision 32-true`` shows how it grows.
A step's time is the median over the steps after the tenth, from the throughput that the run itself logs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROCESSES = (1, 2)
WARM_UP = 10  # steps that are not timed
MODEL = ["--model.backbone", "convnet", "--model.backbone_options", "{width: 16, stages: 2, stem_stride: 2}"]
MODEL += ["--model.projector_hidden", "128", "--model.projector_dim", "64", "--model.temperature", "0.2"]


def fit(processes: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Losses of all steps and seconds a step, of ``lit-ssl fit`` on so many processes."""
    run = ["--config", arguments.method, "--config", "data/quickstart", *MODEL]
    run += ["--data.batch_size", str(arguments.batch // processes), "--data.num_workers", "0"]
    run += ["--trainer.accelerator", "cpu", "--trainer.devices", str(processes)]
    run += ["--trainer.strategy", "ddp" if processes > 1 else "auto", "--trainer.precision", arguments.precision]
    run += ["--trainer.max_steps", str(arguments.steps), "--trainer.limit_val_batches", "0"]
    run += ["--trainer.log_every_n_steps", "1", "--trainer.enable_checkpointing", "false"]
    run += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(folder)]
    binary = Path(sys.executable).parent / "lit-ssl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([binary, "fit", *run], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lit-ssl fit on {processes} process(es) failed:\n{done.stderr[-3000:]}")
    (metrics,) = folder.rglob("metrics.csv")
    rows = list(csv.DictReader(metrics.open()))
    rates = [float(row["time/images_per_s"]) for row in rows if row.get("time/images_per_s")][WARM_UP:]
    return {
        "losses": [float(row["train/loss"]) for row in rows if row.get("train/loss")],
        "step_s": statistics.median(arguments.batch / rate for rate in rates),
    }


def apart(one: list[float], two: list[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))


def draw(runs: dict[int, dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, difference = figure.subplots(1, 2)
    for (processes, run), style in zip(runs.items(), ({"lw": 4, "alpha": 0.4}, {"lw": 1.2}), strict=True):
        curves.plot(run["losses"], label=f"{processes} process{'es' * (processes > 1)}", **style)
    curves.set(xlabel="step", ylabel="loss", title="the same global batch")
    curves.legend()
    one, two = (runs[processes]["losses"] for processes in PROCESSES)
    difference.semilogy([max(abs(a - b) / abs(a), 1e-17) for a, b in zip(one, two, strict=True)], lw=1.2)
    difference.set(xlabel="step", title="relative difference")
    figure.savefig(path, dpi=120)


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "lit-ssl"))
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write losses, their difference and step times here")
    parser.add_argument("--figure", type=Path, help="draw the curves here")
    parser.add_argument("--method", default="method/simclr", help="layer of the method (default: method/simclr)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: 100)")
    parser.add_argument("--batch", type=int, default=256, help="images of all processes together (default: 256)")
    parser.add_argument("--precision", default="64-true", help="of Lightning's Trainer (default: 64-true)")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} that are not timed, got {arguments.steps}")
    if arguments.batch < 2 or arguments.batch % 2:
        parser.error(f"--batch must be even, got {arguments.batch}")
    print(
        f"{machine()}\n{arguments.method}, {arguments.steps} steps of {arguments.batch} images, {arguments.precision}\n"
    )
    runs: dict[int, dict[str, Any]] = {}
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            runs[processes] = fit(processes, arguments, Path(folder))
    one, two = (runs[processes] for processes in PROCESSES)
    difference = apart(one["losses"], two["losses"])
    print("| processes | ms a step | last loss |\n|---|---|---|")
    for processes, run in runs.items():
        print(f"| {processes} | {1000 * run['step_s']:.0f} | {run['losses'][-1]:.12f} |")
    print(f"\nlargest relative difference of the losses: {difference:.1e}")
    if arguments.json:
        found = {"largest_relative_difference": difference, "processes": {str(n): run for n, run in runs.items()}}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.figure:
        draw(runs, arguments.figure)


if __name__ == "__main__":
    main()
