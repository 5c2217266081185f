"""Where a task's outputs start: at what fits its labels best without looking at any feature."""

from __future__ import annotations

import numpy as np

from tfrec.ranker_config import Task

_LEAST = 1e-3


def start(task: Task, labels: np.ndarray) -> np.ndarray | None:
    """Outputs of a constant prediction, float32 [task.outputs]; None where 0 is as good a start.

        number: the mean     value: (logit of the share that paid, mean of log v, σ of log v before its softplus)
        survival: the logit of (leavings in a period + ½) / (rows at risk in it + 1)

    Money has a scale. A network that has to reach it from 0 does so along its inputs, and then promises fortunes to
    rows unlike those that paid.

    Args:
        task: whose labels.
        labels: of the training rows, float32 [R]; NaN = none.
    """
    given = labels[np.isfinite(labels)].astype(np.float64)
    if task.kind == "number" and len(given):
        return np.array([given.mean()], np.float32)
    if task.kind == "value" and np.any(given > 0):
        return _money(given)
    if task.kind == "survival":
        return _hazards(given, task.periods)
    return None


def _money(values: np.ndarray) -> np.ndarray:
    logs = np.log(values[values > 0])
    share = np.clip(np.mean(values > 0), _LEAST, 1 - _LEAST)
    scale = max(float(logs.std()), _LEAST)
    return np.array([_logit(share), logs.mean(), np.log(np.expm1(scale))], np.float32)


def _hazards(labels: np.ndarray, periods: int) -> np.ndarray:
    stayed = np.floor(labels)
    observed = labels == stayed
    left = np.array([np.sum(observed & (stayed == period)) for period in range(periods)])
    at_risk = left + np.array([np.sum(stayed > period) for period in range(periods)])
    return _logit((left + 0.5) / (at_risk + 1)).astype(np.float32)


def _logit(share: np.ndarray) -> np.ndarray:
    return np.log(share) - np.log1p(-share)
