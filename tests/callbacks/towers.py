"""A method of two small towers, images and captions, for the callbacks that need both."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from lit_ssl import SSLModule
from lit_ssl.callbacks import ImageTextRetrieval, ZeroShot
from lit_ssl.datamodules import CaptionedShapes
from lit_ssl.views import SingleView


class Towers(SSLModule):
    """Softmax over the captions of a batch; a caption is the mean of its letters' embeddings, at six places."""

    view_count = 1

    def __init__(self, **kwargs):
        tiny = {
            "backbone": "mlp",
            "backbone_options": {"hidden": (32, 16)},
            "views": SingleView(),
            "lr_scaling": "none",
        }
        super().__init__(**{**tiny, "warmup_epochs": 0, **kwargs})

    def build_heads(self):
        self.letters = nn.Embedding(6 * 128, 16)
        self.drop = nn.Dropout(0.5)  # tells training from evaluation mode

    def _text(self, text):
        rows = [[ord(c) % 128 + 128 * (i % 6) for i, c in enumerate(caption)] for caption in text]
        return torch.stack([self.drop(self.letters(torch.tensor(row, device=self.device)).mean(0)) for row in rows])

    def loss(self, batch):
        image = normalize(self.backbone(self.normalize(batch["views"][0])), dim=1)
        logits = image @ normalize(self._text(batch["text"]), dim=1).mT / 0.1
        return {"loss": cross_entropy(logits, torch.arange(len(logits), device=logits.device))}

    def represent_image(self, image):
        return normalize(self.represent(image), dim=1)

    def represent_text(self, text):
        with self.evaluating():
            return normalize(self._text(text).float(), dim=1)


def shapes(**kwargs):
    """64 pictures to train on and 37 held out."""
    return CaptionedShapes(**{"train_size": 64, "val_size": 37, "batch_size": 16, "image_size": 28, **kwargs})


def main(path, devices):
    """Validates on so many processes under both callbacks; rank 0 writes the metrics."""
    torch.set_num_threads(1)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[ImageTextRetrieval(), ZeroShot()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # 37 images: the last global batch of 16 is not full, and splits unequally
    trainer.validate(Towers(), datamodule=shapes(batch_size=16 // devices), verbose=False)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        Path(path).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
