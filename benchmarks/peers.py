"""SimCLR thrice, to do the same work: of this package, of lightly's parts, and of stable-pretraining's."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from lit_ssl import ImageSpec, SimCLR
from lit_ssl.datamodules import ImageDataModule, Quickstart
from lit_ssl.datamodules.dataset import ImageTensors
from lit_ssl.networks import build_backbone, is_vit
from lit_ssl.random import isolated
from lit_ssl.views import SimCLRViews

os.environ["LOGURU_LEVEL"] = "ERROR"  # else stable-pretraining tells what it does, on stdout
try:
    import stable_pretraining as spt
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.utils.scheduler import CosineWarmupScheduler
    from stable_pretraining.data import FromTorchDataset, gpu_transforms, transforms
    from stable_pretraining.forward import simclr
    from stable_pretraining.losses import NTXEntLoss
except ImportError as error:
    sys.exit(f"these benchmarks compare with others: pip install -r benchmarks/requirements.txt ({error})")

from views import images
from wall_clock import bare_trainer

__all__ = ["Case", "Contender", "built", "contenders", "ours", "pixels", "trainer"]

DECAY, TEMPERATURE, HIDDEN, OUT = 1e-4, 0.2, 512, 128
COLOUR = (0.8, 0.8, 0.8, 0.2)


@dataclass(frozen=True)
class Case:
    """What is trained: ``steps`` of a fit are counted, in ``rounds`` turns."""

    backbone: str
    spec: ImageSpec
    batch: int
    steps: int  # even: batches of two workers arrive in pairs
    rounds: int
    options: dict[str, Any] = field(default_factory=dict)
    blur: float = 0.0
    lr: float = 1e-3
    seed: int = 0

    @property
    def colour(self) -> tuple[float, float, float, float]:
        return COLOUR if self.spec.channels == 3 else (*COLOUR[:2], 0.0, 0.0)

    @property
    def gray(self) -> float:
        return 0.2 if self.spec.channels == 3 else 0.0


class InMemory(ImageDataModule):
    """Images of one tensor, as :class:`lit_ssl.datamodules.Quickstart` serves its own."""

    def __init__(self, images: Tensor, spec: ImageSpec, batch_size: int, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.images, self.spec = images, spec

    def load(self) -> None:
        self.train_set = ImageTensors(self.images)


class Pictures(Dataset[Any]):
    """(image, label) of each, the image from PIL through a transform, as torchvision's data sets have it."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.transform, self.picture = images, transform, v2.ToPILImage()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        picture = self.picture(self.images[i])
        return picture if self.transform is None else self.transform(picture), 0


class Lightly(LightningModule):
    """SimCLR as in lightly's benchmarks (imagenet/resnet50/simclr.py), with AdamW."""

    def __init__(self, backbone: nn.Module, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(backbone.num_features, HIDDEN, OUT)
        self.criterion = NTXentLoss(temperature=TEMPERATURE)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = batch[0]
        z0, z1 = self.projection_head(self.backbone(torch.cat(views))).chunk(len(views))
        loss = self.criterion(z0, z1)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch[1]))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=DECAY)
        scheduler = CosineWarmupScheduler(optimizer, 0, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@dataclass
class Contender:
    """A module, what ``fit`` takes beside it, and how its views are found in a batch, normalised.

    ``workers`` load for it.
    """

    name: str
    module: LightningModule
    data: dict[str, Any]
    views: Callable[[Any], list[Tensor]]
    workers: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def library(self) -> str:
        return self.name.split(",")[0]

    def work(self, batch: Any) -> str:
        """Columns: shapes, mean and deviation of the views; parameters of the backbone and of the rest."""
        with torch.no_grad():
            views = self.views(batch)
        shapes = ", ".join("x".join(map(str, view.shape)) for view in views)
        own = sum(p.numel() for p in self.module.backbone.parameters())  # type: ignore[union-attr]
        rest = sum(p.numel() for p in self.module.parameters()) - own
        both = torch.cat(views)
        return f"{self.name} | {shapes} | {both.mean():.3f} | {both.std():.3f} | {own:,} | {rest:,}"


def trainer(steps: int, fast: bool, *callbacks: Callback, accelerator: str = "cpu") -> Trainer:
    precision: Any = "bf16-mixed" if fast else "32-true"
    return bare_trainer(accelerator=accelerator, max_steps=steps, precision=precision, callbacks=[*callbacks])


def pixels(case: Case) -> Tensor:
    if case.spec.channels == 1:
        data = Quickstart()
        data.setup()
        return data.train_set.images  # type: ignore[union-attr]
    return images(max(2048 * 32 // case.spec.height, 8 * case.batch), case.spec.height)


def loader(dataset: Any, case: Case, workers: int, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )


def prepared(backbone: nn.Module, fast: bool) -> nn.Module:
    """A copy of the backbone for a peer, in the memory format and with the compiled parts that lit_ssl's has."""
    backbone = copy.deepcopy(backbone).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone.register_forward_pre_hook(lambda _, x: (x[0].contiguous(memory_format=torch.channels_last),))
    for part in (backbone.blocks.children() if is_vit(backbone) else [backbone]) if fast else []:
        part.compile()
    return backbone


def stable_pretrainings(case: Case, data: Tensor, normal: dict[str, Any]) -> dict[str, Any]:
    """stable-pretraining's data sets of both kinds."""
    side, taps = case.spec.height, 2 * (case.spec.height // 20) + 1
    one = transforms.Compose(
        transforms.RandomResizedCrop(side),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(*COLOUR, p=0.8),  # which fails where a range is 0; of gray images PIL changes no hue
        *([transforms.RandomGrayscale(case.gray)] if case.gray else []),
        *([transforms.PILGaussianBlur(p=case.blur)] if case.blur else []),
        transforms.ToImage(**normal),
    )
    chain = [
        gpu_transforms.GPURandomResizedCrop(side),
        gpu_transforms.GPURandomHorizontalFlip(),
        gpu_transforms.GPUColorJitter(*case.colour, p=0.8),
        *([gpu_transforms.GPURandomGrayscale(case.gray)] if case.gray else []),
        *([gpu_transforms.GPUGaussianBlur(taps, p=case.blur)] if case.blur else []),
        gpu_transforms.GPUNormalize(**normal),
    ]
    stacked = gpu_transforms.StackedMultiView(gpu_transforms.GPUCompose(chain))
    tensors = TensorDataset(data, torch.zeros(len(data), dtype=torch.int64))
    names = ["image", "label"]
    return {
        "pil": FromTorchDataset(Pictures(data), names, transform=transforms.MultiViewTransform([one, one])),
        "kornia": FromTorchDataset(tensors, names, transform=transforms.ToImage(), gpu_transform=stacked),
    }


def ours(case: Case, backbone: nn.Module, data: Tensor, fast: bool) -> Contender:
    module = SimCLR(
        backbone=copy.deepcopy(backbone),
        spec=case.spec,
        temperature=TEMPERATURE,
        projector_hidden=HIDDEN,
        projector_dim=OUT,
        views=SimCLRViews(strength=1.0, blur=case.blur),
        optimizer="adamw",
        lr=case.lr,
        weight_decay=DECAY,
        lr_scaling="none",
        warmup_epochs=0,
        compile=fast,
        channels_last=True,
        seed=case.seed,
    )
    images = InMemory(data, case.spec, case.batch, case.seed)
    return Contender(
        "lit_ssl", module, {"datamodule": images}, lambda batch: [module.normalize(x) for x in batch["views"]]
    )


def built(case: Case) -> nn.Module:
    with isolated(case.seed, "backbone"):
        return build_backbone(case.backbone, case.spec, options=case.options)


def contenders(
    case: Case, fast: bool, data: Tensor | None = None, workers: Sequence[int] = (0, 2), pin: bool = False
) -> list[Contender]:
    """All that take turns, on these images; a peer's with other views and ``workers`` train one and the same module.

    ``pin``: peers load into pinned memory, for a GPU, as lit_ssl does there by itself.
    """
    data, backbone = pixels(case) if data is None else data, built(case)
    normal = {"mean": list(case.spec.mean), "std": list(case.spec.std)}
    brightness, contrast, saturation, hue = case.colour
    transform = SimCLRTransform(
        input_size=case.spec.height,
        cj_bright=brightness,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=hue,
        random_gray_scale=case.gray,
        gaussian_blur=case.blur,
        normalize=normal,
    )
    lightly = Lightly(prepared(backbone, fast), case.lr)
    stable = spt.Module(
        forward=simclr,
        backbone=prepared(backbone, fast),
        projector=nn.Sequential(
            nn.Linear(backbone.num_features, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, OUT),
        ),
        simclr_loss=NTXEntLoss(temperature=TEMPERATURE),
        optim={"optimizer": {"type": "AdamW", "lr": case.lr, "weight_decay": DECAY}, "scheduler": "CosineAnnealingLR"},
    )
    theirs: list[tuple[str, LightningModule, Any, Callable[[Any], list[Tensor]]]] = [
        ("lightly", lightly, Pictures(data, transform), lambda batch: batch[0])
    ]
    for kind, dataset in stable_pretrainings(case, data, normal).items():
        views: Callable[[Any], list[Tensor]] = lambda batch: [view["image"] for view in batch["views"]]  # noqa: E731
        theirs.append((f"stable_pretraining, {kind}", stable, dataset, views))
    found = [ours(case, backbone, data, fast)]
    for name, module, dataset, views in theirs:
        for count in workers:
            given = {"train_dataloaders": loader(dataset, case, count, pin)}
            found.append(Contender(f"{name}, {count} workers", module, given, views, count))
    return found
