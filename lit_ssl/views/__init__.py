"""Views of images: batched augmentation on the device, every draw keyed by its sample."""

from .batch import Batch, View, as_batch, with_keys, with_views
from .byol import BYOLViews
from .mae import MAEViews
from .moco import MoCoViews
from .multicrop import MultiCropViews
from .simclr import SimCLRViews
from .single import SingleView, clean

__all__ = [
    "BYOLViews",
    "Batch",
    "MAEViews",
    "MoCoViews",
    "MultiCropViews",
    "SimCLRViews",
    "SingleView",
    "View",
    "as_batch",
    "clean",
    "with_keys",
    "with_views",
]
