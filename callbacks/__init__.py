"""What watches a run and never changes it.

Every callback here sees the batch and the module's clean representations, owns what it trains, draws no global random
number and touches neither loss nor weights: with and without it, weights are bit-identical. Two exceptions guard it:
:class:`HealthGuard` stops a run, or skips a step, that computes nan; :class:`Preemption` saves and stops it when a
scheduler asks.
"""

from .augmented_views import AugmentedViews
from .embedding_map import EmbeddingMap
from .embeddings import SaveEmbeddings
from .exact_checkpoint import ExactCheckpoint
from .health import CollapseError, HealthGuard, NonFiniteError
from .health_replay import load_replay
from .latents import LatentSamples, LatentTraversals
from .learning_rate import LearningRate
from .nearest_neighbours import NearestNeighbours
from .neighbours import OnlineKNN
from .pictures import save_picture
from .preemption import Preempted, Preemption
from .probe import OnlineLinearProbe
from .reconstructions import Reconstructions
from .retrieval import ImageTextRetrieval
from .spectrum import RepresentationMonitor
from .summary import SummaryTable
from .throughput import Throughput
from .zero_shot import ZeroShot

__all__ = [
    "AugmentedViews",
    "CollapseError",
    "EmbeddingMap",
    "ExactCheckpoint",
    "HealthGuard",
    "ImageTextRetrieval",
    "LatentSamples",
    "LatentTraversals",
    "LearningRate",
    "NearestNeighbours",
    "NonFiniteError",
    "OnlineKNN",
    "OnlineLinearProbe",
    "Preempted",
    "Preemption",
    "Reconstructions",
    "RepresentationMonitor",
    "SaveEmbeddings",
    "SummaryTable",
    "Throughput",
    "ZeroShot",
    "load_replay",
    "save_picture",
]
