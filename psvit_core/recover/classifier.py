"""Fit of the classifier to the unpruned model's probabilities.

Least squares on logits spend most of their effort on classes that nobody predicts. This fit
minimizes the KL divergence from the unpruned model's probabilities, which is convex in the
classifier's weights: Newton's method, each step solved by conjugate gradients. No labels are used.
A ridge penalty keeps the weights close to the least-squares fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 3e-3  # as a multiple of the mean diagonal of the Gram matrix
_FREE = 1e-3  # the bias's penalty, relative to that of the weights
_NEWTON_STEPS, _SOLVER_STEPS, _HALVINGS = 10, 50, 5


@torch.no_grad()
def fit_probabilities(layer: nn.Linear, inputs: Tensor, wanted: Tensor) -> None:
    """Fit a classifier in place to the softmax of the wanted logits.

    Args:
        layer: The classifier.
        inputs: Its inputs, (n_images, n_features), averaged over time steps.
        wanted: Logits, (n_images, num_classes).
    """
    x, p = inputs.double(), wanted.double().softmax(1)
    start = layer.weight.double()
    if layer.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        start = torch.cat([start, layer.bias.double()[:, None]], dim=1)
    penalty = torch.full_like(x[0], RIDGE * float(x.square().sum()) / x.shape[1])
    if layer.bias is not None:
        penalty[-1] *= _FREE
    if float(penalty.max()) <= 0:  # all inputs are zero
        return
    found = _minimum(x, p, start, penalty)
    layer.weight.copy_(found[:, : layer.in_features])
    if layer.bias is not None:
        layer.bias.copy_(found[:, -1])


def _minimum(x: Tensor, p: Tensor, start: Tensor, penalty: Tensor) -> Tensor:
    """Return the weights, (num_classes, n_features), with the lowest penalized cross-entropy."""

    def cost(w: Tensor) -> float:
        fit = -(p * (x @ w.T).log_softmax(1)).sum()
        return float(fit + 0.5 * ((w - start).square() * penalty).sum())

    weights, lowest = start, cost(start)
    for _ in range(_NEWTON_STEPS):
        q = (x @ weights.T).softmax(1)
        step = _newton_step(x, q, (p - q).T @ x - (weights - start) * penalty, penalty)
        for halving in range(_HALVINGS):
            tried = weights + step / 2**halving
            reached = cost(tried)
            if reached < lowest:
                break
        else:
            return weights
        weights, lowest = tried, reached
    return weights


def _newton_step(x: Tensor, q: Tensor, slope: Tensor, penalty: Tensor) -> Tensor:
    """Solve Hessian @ step = slope by conjugate gradients, preconditioned by the diagonal."""

    def hessian(v: Tensor) -> Tensor:
        qv = q * (x @ v.T)
        return (qv - q * qv.sum(1, keepdim=True)).T @ x + v * penalty

    diagonal = (q * (1 - q)).T @ x.square() + penalty
    step, rest = torch.zeros_like(slope), slope
    scaled = rest / diagonal
    direction, norm = scaled, (rest * scaled).sum()
    enough = 1e-10 * norm
    for _ in range(_SOLVER_STEPS):
        if norm <= enough:
            break
        curved = hessian(direction)
        length = norm / (direction * curved).sum()
        step, rest = step + length * direction, rest - length * curved
        scaled = rest / diagonal
        before, norm = norm, (rest * scaled).sum()
        direction = scaled + norm / before * direction
    return step
