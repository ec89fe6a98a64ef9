"""The methods, one file each."""

from .clip import CLIP
from .fusion import Fusion
from .lejepa import LeJEPA
from .mae import MAE
from .mcl import MCL
from .moco import MoCo
from .simclr import SimCLR
from .vae import VAE

__all__ = ["CLIP", "MAE", "MCL", "VAE", "Fusion", "LeJEPA", "MoCo", "SimCLR"]
