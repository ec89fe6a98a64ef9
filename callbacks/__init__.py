"""What watches a run and never changes it.

Every callback here sees the batch and the module's clean representations, owns what it trains, draws no global random
number and touches neither loss nor weights: with and without it, weights are bit-identical.
"""

from .augmented_views import AugmentedViews
from .embedding_map import EmbeddingMap
from .embeddings import SaveEmbeddings
from .latents import LatentSamples, LatentTraversals
from .learning_rate import LearningRate
from .nearest_neighbours import NearestNeighbours
from .neighbours import OnlineKNN
from .pictures import save_picture
from .probe import OnlineLinearProbe
from .reconstructions import Reconstructions
from .retrieval import ImageTextRetrieval
from .spectrum import RepresentationMonitor
from .summary import SummaryTable
from .throughput import Throughput
from .zero_shot import ZeroShot

__all__ = [
    "AugmentedViews",
    "EmbeddingMap",
    "ImageTextRetrieval",
    "LatentSamples",
    "LatentTraversals",
    "LearningRate",
    "NearestNeighbours",
    "OnlineKNN",
    "OnlineLinearProbe",
    "Reconstructions",
    "RepresentationMonitor",
    "SaveEmbeddings",
    "SummaryTable",
    "Throughput",
    "ZeroShot",
    "save_picture",
]
