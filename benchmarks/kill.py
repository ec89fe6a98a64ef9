"""Kill a run at random instants, resume it each time, and compare it with the run that was never stopped.

    python benchmarks/kill.py --kills 30 --json kill.json
    python benchmarks/kill.py --root data                       # Fashion-MNIST in place of the embedded images
    python benchmarks/kill.py --kills 5 -- --data.num_workers 2 --trainer.accumulate_grad_batches 3

Each kill is a run of its own: ``lit-ssl fit`` gets SIGKILL at an instant drawn uniformly from the time that the run
takes undisturbed, from the first line of the command to its last, and is then started again with ``--ckpt_path last``.
Processes are forked from one that has imported torch and Lightning, which takes ten times as long as parsing the
arguments and touches no file of the run. A kill counts as one during a save if it leaves a half-written file.

Counted, against the undisturbed run: runs whose final weights, optimizer, schedule and probe are equal bit by bit;
checkpoints that a kill left unreadable; rows of metrics.csv that are there twice, and rows that are missing or hold
another value (throughput, ``time/…``, left out).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; a process with threads must not fork

import torch

import lit_ssl.cli
from lit_ssl.__main__ import main as lit_ssl_command
from lit_ssl.checkpoint import damage_of, load

RUN = {
    "model.backbone": "mlp",
    "model.backbone_options": "{hidden: [512]}",
    "model.optimizer": "adamw",
    "model.lr": 0.001,
    "data.batch_size": 32,
    "checkpoint.every_n_train_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 25,
    "trainer.limit_val_batches": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "knn.max_bank": 512,
    "embedding_map.every_n_epochs": 2,
}


def start(folder: Path, arguments: list[str]) -> int:
    """The command in a process of its own; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        code = lit_ssl_command(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(pid: int, folder: Path) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"a run failed:\n{(folder / 'output.txt').read_text()[-3000:]}")


def killed(pid: int, seconds: float) -> bool:
    """SIGKILL after so many seconds; False if the process had ended by then."""
    time.sleep(seconds)
    done, _ = os.waitpid(pid, os.WNOHANG)
    if done:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def unreadable(folder: Path) -> int:
    def broken(path: Path) -> bool:
        try:
            return damage_of(path) is not None or not load(path)["state_dict"]
        except Exception:
            return True

    return sum(map(broken, folder.rglob("*.ckpt")))


def same(one: Any, other: Any) -> bool:
    """Equality of nested states, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def final_state(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("last.ckpt")
    checkpoint = load(path)
    probe = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("OnlineLinearProbe"))
    return {**{name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}, "probe": probe}


def rows(folder: Path) -> list[tuple[tuple[str, str], ...]]:
    (path,) = folder.rglob("metrics.csv")
    with open(path, newline="") as file:
        return [
            tuple(sorted((name, value) for name, value in row.items() if value and not name.startswith("time/")))
            for row in csv.DictReader(file)
        ]


def events(found: list[tuple[tuple[str, str], ...]]) -> Counter[Any]:
    """Which metrics were logged at which step, whatever their values."""
    return Counter((dict(row)["step"], tuple(name for name, _ in row)) for row in found)


def progress(folder: Path) -> str:
    """How far a killed run had come, as its files tell."""
    metrics, saved = list(folder.rglob("metrics.csv")), list(folder.rglob("last.ckpt"))
    logged = max((int(dict(row)["step"]) for row in rows(folder)), default=-1) if metrics else -1
    return f"logged to step {logged:3d}, saved at step {load(saved[0])['global_step'] if saved else 0:3d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--root", type=Path, help="folder with Fashion-MNIST")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("flags", nargs="*", help="further flags of the runs, behind --")
    options = parser.parse_args()

    data = (
        ["data/quickstart"] if options.root is None else ["data/fashion_mnist", f"--data.root={options.root.resolve()}"]
    )
    arguments = ["fit", "--config", "method/simclr", "--config", *data]
    arguments += [f"--{name}={value}" for name, value in RUN.items()] + options.flags
    counts = {"kills": 0, "identical": 0, "unreadable": 0, "doubled_rows": 0, "lost_rows": 0, "during_saves": 0}
    instants = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        for whole in (Path(name) / "first", Path(name) / "whole"):  # the first one fills the caches of the system
            began = time.perf_counter()
            finish(start(whole, arguments), whole)
            length = time.perf_counter() - began
        state, expected = final_state(whole), rows(whole)
        print(f"undisturbed: {length:.1f} s, {len(expected)} rows of metrics", flush=True)
        while counts["kills"] < options.kills:
            instant = instants.uniform(0, length)
            folder = Path(name) / f"{counts['kills']}-{instant}"
            if not killed(start(folder, arguments), instant):
                print(f"at {instant:6.2f} s: the run had ended; another instant", flush=True)
                continue
            half_written = any(folder.rglob(".*.ckpt.partial"))
            told, broken = progress(folder), unreadable(folder)
            finish(start(folder, [*arguments, "--ckpt_path", "last"]), folder)
            identical, found = same(final_state(folder), state), rows(folder)
            counts["kills"] += 1
            counts["identical"] += identical
            counts["unreadable"] += broken + unreadable(folder)
            counts["doubled_rows"] += (events(found) - events(expected)).total()
            counts["lost_rows"] += (Counter(expected) - Counter(found)).total()
            counts["during_saves"] += half_written
            print(
                f"kill {counts['kills']:2d} at {instant:6.2f} s: {told}{', during a save' if half_written else ''}; "
                f"{'identical' if identical else 'DIFFERENT'}, {len(found)} rows",
                flush=True,
            )
    print(json.dumps(counts))
    if counts["during_saves"] < 3:
        print("fewer than three kills fell into a save: another --seed draws other instants")
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    assert lit_ssl.cli  # imported before the first fork, so that no child has to
    main()
