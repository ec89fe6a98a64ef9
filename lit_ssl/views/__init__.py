"""Views of images: batched augmentation on the device, every draw keyed by its sample."""

from .batch import Batch, View, as_batch, with_keys, with_text, with_views
from .byol import BYOLViews
from .mae import MAEViews
from .moco import MoCoViews
from .multicrop import MultiCropViews
from .simclr import SimCLRViews
from .single import SingleView, clean
from .slip import SLIPViews

__all__ = [
    "BYOLViews",
    "Batch",
    "MAEViews",
    "MoCoViews",
    "MultiCropViews",
    "SLIPViews",
    "SimCLRViews",
    "SingleView",
    "View",
    "as_batch",
    "clean",
    "with_keys",
    "with_text",
    "with_views",
]
