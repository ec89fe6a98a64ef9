"""Retrieval between pictures and captions that training never shows, beside chance and the untrained towers.

    python benchmarks/image_text.py --minutes 3 --seeds 0 1 2 --json F
    python benchmarks/image_text.py --emoji DIR --minutes 5 --seeds 0 1 2 --json F

Without ``--emoji``: CLIP on the pictures of ``CaptionedShapes``; the gallery is its 1,152 held-out combinations of
attributes, each once. With it: CLIP and SigLIP on emoji and their names, where DIR holds ``captions.csv`` with the
columns image, caption, short_name and split; the gallery is the held-out emoji. Rows with equal captions are hits of
one another. The recipes below were chosen on pictures and emoji held out from the training split; the galleries are
read by the final table only. The learning rate falls on a cosine over the time given, so that every run ends with its
schedule.

``--clock cpu`` counts the time that a run computes, minutes times threads of it, instead of the time that goes by: the
same on an idle machine, and fair on a busy one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from wall_clock import CLOCKS, WallClock, bare_trainer

import lit_ssl
from lit_ssl import CLIP, SSLModule
from lit_ssl.datamodules import CaptionedShapes, ImageDataModule, ImageText
from lit_ssl.evaluation.retrieval import Retrieval, retrieval

SHARED: dict[str, Any] = {
    "backbone": "convnet",
    "channels_last": True,
    "embedding_dim": 128,
    "weight_decay": 0.1,
}
# Cells of a grid are pooled separately: captions tell where things are.
SHAPES: dict[str, Any] = {
    "backbone_options": {"width": 32, "stages": 2, "grid": 4},
    "text_options": {"width": 64, "depth": 2, "heads": 4, "pool": "mean"},
    "lr": 2e-3,
}
EMOJI: dict[str, Any] = {
    "backbone_options": {"width": 32, "stages": 3, "stem_stride": 2, "depth": 1, "grid": 4},
    "text_options": {"width": 96, "depth": 2, "heads": 4, "pool": "mean"},
    "lr": 2e-3,
}


def shapes(seed: int) -> ImageDataModule:
    return CaptionedShapes(seed=seed)


def emoji(folder: str, seed: int) -> ImageDataModule:
    columns: dict[str, Any] = {"caption_columns": ["caption", "short_name"], "split_column": "split"}
    return ImageText(folder, image_size=64, load_size=64, num_workers=0, seed=seed, **columns)


def train(method: SSLModule, data: ImageDataModule, seconds: float, clock: str) -> int:
    """Optimizer steps taken."""
    limit = WallClock(seconds, clock=clock)
    bare_trainer(callbacks=[limit]).fit(method, data)
    return limit.steps


def score(method: CLIP, data: ImageDataModule) -> Retrieval:
    """Retrieval among all held-out rows of ``data``."""
    assert data.val_set is not None
    batches = list(data.loader(data.val_set))
    captions = [caption for batch in batches for caption in batch["text"]]
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    return retrieval(
        torch.cat([method.represent_image(batch["image"]) for batch in batches]),
        torch.cat([method.represent_text(batch["text"]) for batch in batches]),
        groups=torch.tensor([first[caption] for caption in captions]),
    )


def figures(scores: Retrieval) -> dict[str, Any]:
    return {
        way: {"r1": recall[1], "r5": recall[5], "median_rank": rank}
        for way, recall, rank in (
            ("image_to_text", scores.i2t, scores.i2t_median_rank),
            ("text_to_image", scores.t2i, scores.t2i_median_rank),
            ("chance", scores.chance, scores.chance_median_rank),
        )
    }


def run(loss: Literal["clip", "siglip"], seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    data = emoji(arguments.emoji, seed) if arguments.emoji else shapes(seed)
    recipe = EMOJI if arguments.emoji else SHAPES
    data.prepare_data()
    data.setup()
    method = CLIP(loss=loss, seed=seed, spec=data.spec, **SHARED, **recipe)
    method.configure_model()
    untrained = figures(score(method, data))
    budget = arguments.minutes * 60 * (arguments.threads if arguments.clock == "cpu" else 1)
    start = time.monotonic()
    steps = train(method, data, budget, arguments.clock)
    minutes = (time.monotonic() - start) / 60
    scores = score(method, data)
    entry = {"loss": loss, "seed": seed, "steps": steps, "wall_minutes": minutes, "gallery": scores.rows}
    return {**entry, **figures(scores), "untrained": untrained}


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| towers | image to text R@1 | R@5 | median rank | text to image R@1 | R@5 | median rank | |"]
    lines.append("|---|---|---|---|---|---|---|---|")

    def row(name: str, there: dict[str, float], back: dict[str, float], note: str = "") -> str:
        cells = [f"{way['r1']:.4f} | {way['r5']:.4f} | {way['median_rank']:.1f}" for way in (there, back)]
        return f"| {name} | {' | '.join(cells)} | {note} |"

    first = runs[0]
    lines.append(row(f"chance of {first['gallery']:,}", first["chance"], first["chance"]))
    lines.append(row("untrained", first["untrained"]["image_to_text"], first["untrained"]["text_to_image"]))
    for entry in runs:
        there, back = entry["image_to_text"], entry["text_to_image"]
        times = min(there["r1"], back["r1"]) / entry["chance"]["r1"]
        note = f"seed {entry['seed']}, {entry['steps']} steps; at least {times:.0f} times chance"
        lines.append(row(entry["loss"], there, back, note))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="of training, a run")
    parser.add_argument("--emoji", metavar="DIR", help="folder of captions.csv and its images, in place of shapes")
    parser.add_argument("--loss", nargs="+", choices=["clip", "siglip"], help="default: clip; both with --emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    result: dict[str, Any] = {
        "data": "emoji" if arguments.emoji else "captioned shapes",
        "minutes": arguments.minutes,
        "threads": arguments.threads,
        "clock": arguments.clock,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "lit_ssl": lit_ssl.__version__},
        "runs": [],
    }
    for loss in arguments.loss or (["clip", "siglip"] if arguments.emoji else ["clip"]):
        for seed in arguments.seeds:
            result["runs"].append(run(loss, seed, arguments))
            print(json.dumps(result["runs"][-1]), flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{result['data']}: {arguments.minutes:g} minutes, {arguments.threads} threads, {arguments.clock} clock\n")
    print(table(result["runs"]))


if __name__ == "__main__":
    main()
