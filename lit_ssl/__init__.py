"""Self-supervised learning methods for PyTorch Lightning."""

from .methods import MoCo, SimCLR
from .module import SSLModule
from .spec import ImageSpec

__version__ = "0.1.0"

__all__ = ["ImageSpec", "MoCo", "SSLModule", "SimCLR", "__version__"]
