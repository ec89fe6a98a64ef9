"""A map of held-out embeddings."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl.checks import check_integer

from .features import HeldOutSample, represent
from .pictures import save_picture
from .schedule import due_or_last
from .single import SingleCallback

__all__ = ["EmbeddingMap", "principal_plane"]


def principal_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions in which normalised embeddings vary most.

    Args:
        x: floating-point (N, D).

    Returns:
        coordinates (N, 2) float64 and the share of the variance (2,) that each explains. The sign of an axis is fixed:
        its largest loading is positive.
    """
    x = normalize(x.double().cpu(), dim=1)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.mT @ x)
    axes = torch.nn.functional.pad(vectors.flip(1), (0, max(0, 2 - x.shape[1])))[:, :2]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    share = torch.nn.functional.pad(values.flip(0), (0, 2))[:2].clamp_min(0) / values.sum().clamp_min(1e-300)
    return x @ axes, share


class EmbeddingMap(SingleCallback):
    """Saves a 2-D map of held-out embeddings, coloured by label: their principal plane, the same at every drawing.

    A plane shows less than a t-SNE would, and invents nothing: distances are the embeddings' own. Logged as
    ``pictures/embedding-map``.

    Args:
        max_samples: images over all ranks; default 2,000.
        every_n_epochs: act at the validation of every n-th epoch; default 10. The last epoch is always drawn.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, max_samples: int = 2000, every_n_epochs: int = 10) -> None:
        check_integer("max_samples", max_samples, 2)
        check_integer("every_n_epochs", every_n_epochs)
        self.max_samples, self.every_n_epochs = max_samples, every_n_epochs
        self._sample = HeldOutSample(max_samples)
        self._due = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = due_or_last(trainer, self.every_n_epochs)
        if self._due:
            self._sample.start(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = self._sample.rows(len(batch["image"])) if self._due and not dataloader_idx else 0
        if rows > 0:
            self._sample.add(x=represent(pl_module, batch["image"])[:rows], label=batch["label"][:rows])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due:
            return
        sample = self._sample.gathered(pl_module, ("x", "label"))
        if "x" in sample and len(sample["x"]) >= 2 and bool(torch.isfinite(sample["x"]).all()):
            names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
            save_picture(trainer, "embedding-map", lambda: _draw(sample["x"], sample["label"].cpu(), names))


def _draw(x: Tensor, label: Tensor, names: list[str] | None) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    where, share = principal_plane(x)
    figure = Figure(figsize=(7, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    classes = label.unique().tolist()
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"]
    for place, c in enumerate(classes):
        rows = label == c
        colour = "0.7" if c < 0 else colours(place if len(classes) <= 20 else place / (len(classes) - 1))
        name = "no label" if c < 0 else names[c] if names and c < len(names) else str(c)
        across, up = where[rows].T.numpy()
        axes.scatter(across, up, s=6, color=colour, label=name, linewidths=0)
    if 1 < len(classes) <= 20:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2.5, frameon=False, fontsize=8)
    axes.set(xticks=[], yticks=[], title=f"{len(x):,} held-out embeddings")
    axes.set_xlabel(f"first principal axis, {share[0]:.0%} of the variance")
    axes.set_ylabel(f"second, {share[1]:.0%}")
    return figure
