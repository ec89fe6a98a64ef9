"""Image-text retrieval during a run."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ssl.checks import check_integer
from lit_ssl.evaluation import retrieval

from .drawing import require
from .features import HeldOutSample, represent
from .schedule import due
from .single import SingleCallback

__all__ = ["ImageTextRetrieval"]


class ImageTextRetrieval(SingleCallback):
    """Finds for each held-out image its caption among those of all, and for each caption its image.

    For methods that have ``represent_image`` and ``represent_text`` (CLIP). At each validation and in ``test``, over
    the clean held-out images and their first captions of all ranks. Logs ``retrieval/i2t_r1``, ``retrieval/i2t_r5``,
    ``retrieval/t2i_r1``, ``retrieval/t2i_r5`` (recall at 1 and 5, from 0 to 1), ``retrieval/i2t_median_rank``,
    ``retrieval/t2i_median_rank``, and ``retrieval/chance_r1``. Images whose captions are equal are hits of one another;
    see :func:`lit_ssl.evaluation.retrieval`.

    Args:
        max_samples: pairs in the gallery over all ranks, spread evenly over the batches; recall depends on how many
            there are. Default 10,000.
        every_n_epochs: act at the validation of every n-th epoch.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: the method has no ``represent_text``.
    """

    needs = "represent_text"

    def __init__(self, max_samples: int = 10_000, every_n_epochs: int = 1) -> None:
        check_integer("max_samples", max_samples, 2)
        check_integer("every_n_epochs", every_n_epochs)
        self.max_samples, self.every_n_epochs = max_samples, every_n_epochs
        self._sample = HeldOutSample(max_samples)
        self._due = self._said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require(self, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = due(trainer, self.every_n_epochs)
        if self._due:
            self._sample.start(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._due and "text" not in batch:
            self._due = False
            if not self._said:
                rank_zero_info("ImageTextRetrieval is off: the batches have no 'text'")
            self._said = True
        rows = self._sample.rows(len(batch["image"])) if self._due and not dataloader_idx else 0
        if rows > 0:
            text = batch["text"][:rows]
            self._sample.add(
                image=represent(pl_module, batch["image"], "represent_image")[:rows],
                text=pl_module.represent_text(text),
                group=torch.tensor([_number(caption) for caption in text]),
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sample = self._sample.gathered(pl_module, ("image", "text", "group")) if self._due else {}
        if "group" not in sample:
            return
        image, text, group = sample["image"], sample["text"], sample["group"]
        if not all(bool(torch.isfinite(x).all()) for x in (image, text)):
            rank_zero_warn("no retrieval: some embeddings are nan or infinite, the run has diverged")
            return
        scores = retrieval(image, text, ks=(1, 5), groups=group)
        values = {
            **{f"i2t_r{k}": recall for k, recall in scores.i2t.items()},
            **{f"t2i_r{k}": recall for k, recall in scores.t2i.items()},
            "i2t_median_rank": scores.i2t_median_rank,
            "t2i_median_rank": scores.t2i_median_rank,
            "chance_r1": scores.chance[1],
        }
        for name, value in values.items():
            pl_module.log(f"retrieval/{name}", value, prog_bar=name == "i2t_r1", sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _number(caption: str) -> int:
    """Equal for equal captions, on every rank."""
    digest = hashlib.blake2b(caption.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
