"""Data sets that torchvision reads and downloads, held in memory as one uint8 tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torchvision import datasets

from lit_ssl.spec import ImageSpec

from .dataset import ImageTensors
from .module import ImageDataModule

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "STL10", "FashionMNIST", "TorchvisionDataModule"]


class TorchvisionDataModule(ImageDataModule):
    """A data set of ``torchvision.datasets``, in torchvision's layout under ``root``.

    The train split pretrains and is what probes learn from; the test split is held out.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source: ClassVar[str]  # the class in torchvision.datasets
    folder: ClassVar[str]  # where that class looks, below root
    classes: ClassVar[int]
    train_split: ClassVar[dict[str, Any]] = {"train": True}
    test_split: ClassVar[dict[str, Any]] = {"train": False}

    def _open(self, split: dict[str, Any], download: bool = False) -> Any:
        return getattr(datasets, self.source)(str(self.root), download=download, **split)

    def _read(self, split: dict[str, Any]) -> tuple[ImageTensors, list[str] | None]:
        """One split, and the names of its classes."""
        try:
            data = self._open(split)
        except Exception as error:  # torchvision has no type of its own for "not there" or "damaged"
            detail = "" if isinstance(error, RuntimeError) else f" ({type(error).__name__}: {_line(error)})"
            raise FileNotFoundError(
                f"{self.source}: looked in {(self.root / self.folder).absolute()} and did not find it whole{detail}. "
                "Download it with --data.download true (download=True in Python), or say with --data.root which "
                f"folder holds '{self.folder}'"
            ) from error
        images = torch.as_tensor(data.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(data.targets if hasattr(data, "targets") else data.labels, dtype=torch.int64)
        names = getattr(data, "classes", None)
        return ImageTensors(images, labels), None if names is None else list(names)

    def prepare_data(self) -> None:
        """Downloads what is missing, if ``download`` was set.

        Raises:
            RuntimeError: the download failed; says why, and where to put files fetched by other means.
        """
        if not self.download:
            return
        try:
            self._open(self.test_split, download=True)
        except Exception as error:
            raise RuntimeError(
                f"{self.source}: the download to {(self.root / self.folder).absolute()} failed ({_line(error)}). "
                "Check the connection and that the folder is writable, or put the files there from another machine"
            ) from error

    def load(self) -> None:
        self.train_set, self.class_names = self._read(self.train_split)
        self.val_set, _ = self._read(self.test_split)
        self.labelled_set = self.train_set
        self.num_classes = self.classes


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class MNIST(TorchvisionDataModule):
    """MNIST (LeCun et al. 1998): handwritten digits, 60,000 to train and 10,000 held out, gray, 28 x 28.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source = "MNIST"
    folder = "MNIST/raw"
    native = ImageSpec(28, 1, (0.1307,), (0.3081,))  # of the 60,000; FashionMNIST's likewise
    classes = 10


class FashionMNIST(TorchvisionDataModule):
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): clothes, 60,000 to train, 10,000 held out, gray, 28 x 28.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source = "FashionMNIST"
    folder = "FashionMNIST/raw"
    native = ImageSpec(28, 1, (0.2860,), (0.3530,))
    classes = 10


class CIFAR10(TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 to train and 10,000 held out, RGB, 32 x 32.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source = "CIFAR10"
    folder = "cifar-10-batches-py"
    native = ImageSpec(32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    classes = 10


class CIFAR100(TorchvisionDataModule):
    """CIFAR-100 (Krizhevsky 2009): 100 classes, 50,000 to train and 10,000 held out, RGB, 32 x 32.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source = "CIFAR100"
    folder = "cifar-100-python"
    native = ImageSpec(32, 3, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    classes = 100


class STL10(TorchvisionDataModule):
    """STL-10 (Coates et al. 2011): RGB, 96 x 96. 100,000 unlabelled images pretrain.

    The 5,000 labelled images are ``labelled_set``, what probes learn from; the 8,000 of the test split are held out.

    Args:
        root, batch_size, num_workers, seed, views, image_size, download: see :class:`ImageDataModule`.
    """

    source = "STL10"
    folder = "stl10_binary"
    native = ImageSpec(96, 3, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))  # of the labelled train split
    classes = 10
    train_split: ClassVar[dict[str, Any]] = {"split": "unlabeled"}
    test_split: ClassVar[dict[str, Any]] = {"split": "test"}

    def load(self) -> None:
        super().load()
        self.labelled_set, _ = self._read({"split": "train"})
