"""Figures of predictions beside the truth, by the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.tasks.labelled import Ints, Score


def single_label(truth: Ints, predicted: Ints, labels: Sequence[str]) -> Score:
    """By scikit-learn; of two labels, F1 is that of the second."""
    from sklearn import metrics

    every, named = range(len(labels)), {"labels": range(len(labels)), "zero_division": 0}
    figures = {"accuracy": metrics.accuracy_score(truth, predicted), "mcc": metrics.matthews_corrcoef(truth, predicted)}
    figures |= {f"f1_{how}": metrics.f1_score(truth, predicted, average=how, **named) for how in ("macro", "weighted")}
    if len(labels) == 2:
        figures["f1"] = metrics.f1_score(truth, predicted, zero_division=0)
    report = metrics.classification_report(truth, predicted, labels=every, target_names=labels, output_dict=True, zero_division=0)
    confusion = {"labels": list(labels), "counts": metrics.confusion_matrix(truth, predicted, labels=every).tolist()}
    return Score({key: float(value) for key, value in figures.items()}, {"by_label": report, "confusion": confusion})


def multi_label(truth: Ints, predicted: Ints, labels: Sequence[str]) -> Score:
    """By scikit-learn; accuracy: all labels of an example are right. truth, predicted: `[examples, labels]` zeros and ones."""
    from sklearn import metrics

    figures = {"accuracy": metrics.accuracy_score(truth, predicted)}
    figures |= {f"f1_{how}": metrics.f1_score(truth, predicted, average=how, zero_division=0) for how in ("micro", "macro", "weighted")}
    report = metrics.classification_report(truth, predicted, target_names=labels, output_dict=True, zero_division=0)
    return Score({key: float(value) for key, value in figures.items()}, {"by_label": report})


def regression(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> Score:
    """Mean squared and absolute error; correlations, which are 0 where either side is constant."""
    from scipy import stats

    error = predicted - truth
    constant = len(truth) < 2 or truth.std() == 0 or predicted.std() == 0
    pearson, spearman = (0.0, 0.0) if constant else (stats.pearsonr(truth, predicted)[0], stats.spearmanr(truth, predicted)[0])
    return Score({"mse": float((error**2).mean()), "mae": float(abs(error).mean()), "pearson": float(pearson), "spearman": float(spearman)})
