"""Scores of regression and of classes, from counts."""

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class ClassScores(NamedTuple):
    """Precision, recall and F1 of each class, (classes,) each; see `parallelcnn.metrics`. 0 / 0 is 0."""

    precision: Array
    recall: Array
    f1: Array


def class_scores(counts: Array) -> ClassScores:
    """The scores of each class.

    Args:
        counts: (3, classes): samples of each class that are predicted as it, samples predicted as it, samples of it.
    """
    hits, predicted, true = counts.astype(np.float64)
    return ClassScores(_ratio(hits, predicted), _ratio(hits, true), _ratio(2 * hits, predicted + true))


def explained_variance(squared: Array, targets: Array) -> Array:
    """R^2 of each output, the coefficient of determination: 1 - mean squared error / variance of the targets.

    It is NaN where all targets are equal.

    Args:
        squared: (outputs,), mean squared errors.
        targets: (N,) or (N, outputs).
    """
    variance = targets.reshape(len(targets), -1).var(axis=0, dtype=np.float64)
    return np.where(variance > 0, 1 - squared / np.where(variance > 0, variance, 1), np.nan)


def _ratio(above: Array, below: Array) -> Array:
    return above / np.where(below == 0, 1.0, below)
