"""The README's picture, from a run: python docs/quickstart_picture.py runs/simclr-quickstart/version_0"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread


def column(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in found], [value for _, value in found]


def latest(folder: Path, name: str) -> Path:
    return max(folder.glob(f"{name}-step*.png"), key=lambda path: int(path.stem.rpartition("step")[2]))


def main(run: Path, target: Path) -> None:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    figure = Figure(figsize=(15, 5), layout="constrained")
    FigureCanvasAgg(figure)
    views, curves, embeddings = figure.subplots(1, 3, width_ratios=(2.6, 5, 6.4))
    picture = imread(latest(run / "pictures", "augmented-views"))
    views.imshow(picture[: picture.shape[0] * 5 // 8])
    views.set_title("image and its two views")
    views.axis("off")
    for name, label in (("probe/val_acc", "online linear probe"), ("knn/val_acc", "kNN")):
        curves.plot(*column(rows, name), label=label, marker="o")
    curves.set(title="held-out accuracy while it trains", xlabel="step")
    curves.legend(loc="lower right")
    loss = curves.twinx()
    loss.plot(*column(rows, "train/loss"), color="0.7", zorder=0)
    loss.set_ylabel("loss (gray)")
    embeddings.imshow(imread(latest(run / "pictures", "embedding-map")))
    embeddings.axis("off")
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "quickstart.png")
