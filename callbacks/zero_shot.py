"""Zero-shot classification during a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl.checks import check_integer

from .accuracy import LabelledAccuracy
from .drawing import require
from .features import represent
from .schedule import due
from .single import SingleCallback

__all__ = ["ZeroShot"]

_AT_ONCE = 256  # prompts that are encoded together


class ZeroShot(SingleCallback):
    """Classifies held-out images by the nearest class name: no label is learned from.

    For methods that have ``represent_image`` and ``represent_text`` (CLIP), where the data have labels with names. At
    each validation and in ``test`` the class names, put into every template, are encoded by the text tower as it now
    is; a class is the mean of its prompts' embeddings (Radford et al. 2021, arXiv:2103.00020, section 3.1.4). Logs
    ``zero_shot/val_acc`` or ``zero_shot/test_acc``, over all ranks.

    Args:
        templates: captions with ``{}`` in place of the class name. By default the data module's ``class_templates``, or
            "a photo of a {}.", as in the paper.
        class_names: in the order of the labels; by default the data module's.
        every_n_epochs: act at the validation of every n-th epoch.

    Raises:
        ValueError: an argument out of range, or a template without ``{}``.
        MisconfigurationException: the method has no ``represent_text``.
    """

    needs = "represent_text"

    def __init__(
        self,
        templates: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        self.templates = None if templates is None else _strings("templates", templates)
        self.class_names = None if class_names is None else _strings("class_names", class_names)
        if bad := [template for template in self.templates or () if "{}" not in template]:
            raise ValueError(f"templates must hold {{}}, where the class name goes, got {bad[0]!r}")
        check_integer("every_n_epochs", every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._classes: Tensor | None = None
        self._accuracy = LabelledAccuracy()
        self._said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require(self, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._classes = None
        if not due(trainer, self.every_n_epochs):
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        names = self.class_names or getattr(datamodule, "class_names", None)
        if not names:
            if not self._said:
                rank_zero_info("ZeroShot is off: the data have no class names; give ZeroShot(class_names=...)")
            self._said = True
            return
        templates = self.templates or getattr(datamodule, "class_templates", None) or ("a photo of a {}.",)
        self._classes = _embedded(pl_module, names, templates)
        self._accuracy.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._classes is None or dataloader_idx:
            return
        image = represent(pl_module, batch["image"], "represent_image")
        self._accuracy.update((image @ self._classes.mT).argmax(1), batch["label"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._classes is None:
            return
        self._classes = None
        accuracy = self._accuracy.compute()
        if not bool(accuracy.isnan()):
            stage = "test" if trainer.testing else "val"
            pl_module.log(f"zero_shot/{stage}_acc", accuracy, prog_bar=True, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _embedded(pl_module: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding of unit length for each class: float32 (K, E)."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    parts = [pl_module.represent_text(prompts[i : i + _AT_ONCE]) for i in range(0, len(prompts), _AT_ONCE)]
    return normalize(torch.cat(parts).unflatten(0, (len(names), len(templates))).mean(1), dim=1)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"{name} must be a list of strings that are not empty, got {value!r}")
    return tuple(value)
