"""Where samples come from, in which order, and where views are made."""

from .captioned_shapes import CaptionedShapes
from .dataset import ImageTensors, Loader, outlast_signals
from .decoding import decode
from .image_files import CorruptImageError, ImageFiles
from .image_folder import ImageFolder
from .image_text import ImageText
from .module import ImageDataModule
from .quickstart import Quickstart
from .sampler import ShardedSampler
from .standard import CIFAR10, CIFAR100, MNIST, STL10, FashionMNIST

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "STL10",
    "CaptionedShapes",
    "CorruptImageError",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolder",
    "ImageTensors",
    "ImageText",
    "Loader",
    "Quickstart",
    "ShardedSampler",
    "decode",
    "outlast_signals",
]
