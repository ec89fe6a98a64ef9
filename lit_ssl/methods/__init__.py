"""The methods, one file each."""

from .moco import MoCo
from .simclr import SimCLR

__all__ = ["MoCo", "SimCLR"]
