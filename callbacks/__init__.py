"""What watches a run and never changes it.

Every callback here sees the batch and the module's clean representations, owns what it trains, draws no global random
number and touches neither loss nor weights: with and without it, weights are bit-identical.
"""

from .augmented_views import AugmentedViews
from .embedding_map import EmbeddingMap
from .embeddings import SaveEmbeddings
from .learning_rate import LearningRate
from .neighbours import OnlineKNN
from .pictures import save_picture
from .probe import OnlineLinearProbe
from .spectrum import RepresentationMonitor
from .summary import SummaryTable
from .throughput import Throughput

__all__ = [
    "AugmentedViews",
    "EmbeddingMap",
    "LearningRate",
    "OnlineKNN",
    "OnlineLinearProbe",
    "RepresentationMonitor",
    "SaveEmbeddings",
    "SummaryTable",
    "Throughput",
    "save_picture",
]
