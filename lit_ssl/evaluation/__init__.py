"""Evaluation as pure functions of tensors: probes, neighbours, retrieval, spectra, and the table they make.

The one copy that callbacks, the summary table and benchmarks all call.
"""

from .neighbours import knn, knn_predict
from .probes import few_labels, linear_probe, logistic_regression
from .retrieval import Retrieval, format_retrieval, retrieval
from .spectra import alignment, alpha_req, feature_std, rankme, uniformity
from .table import Scores, evaluate, format_scores, summary

__all__ = [
    "Retrieval",
    "Scores",
    "alignment",
    "alpha_req",
    "evaluate",
    "feature_std",
    "few_labels",
    "format_retrieval",
    "format_scores",
    "knn",
    "knn_predict",
    "linear_probe",
    "logistic_regression",
    "rankme",
    "retrieval",
    "summary",
    "uniformity",
]
