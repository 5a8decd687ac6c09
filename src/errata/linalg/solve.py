"""The weight update that maps keys to values and is minimal in a metric M, solved exactly.

It minimises tr(dW M dW^T) + |dW K_p|^2 + |dW K - R|^2 over dW, for new keys K and the keys K_p of
earlier edits. With U = [K_p K] and S = M^-1 it is dW = R X with

    X = the last n rows of (I + U^T S U)^-1 U^T S             (Woodbury; a solve of size N)

so that only S applied to keys is needed: a Cholesky solve for a second moment (MEMIT, PMET), a
projection divided by the ridge for a null space (AlphaEdit). X and R are a low-rank delta.

Shapes: keys are rows here. N keys of d numbers, of earlier edits and new; the last n are new.
"""

from __future__ import annotations

import torch
from torch import Tensor


def update(keys_Nd: Tensor, smoothed_Nd: Tensor, new: int) -> Tensor:
    """[n, d] X, float64, from keys U^T and U^T S."""
    keys, smoothed = keys_Nd.double(), smoothed_Nd.double()
    gram = smoothed @ keys.T
    gram = (gram + gram.T) / 2
    gram.diagonal().add_(1.0)
    unit = torch.eye(len(keys), dtype=torch.float64, device=keys.device)[:, len(keys) - new :]
    weights: Tensor = torch.linalg.solve(gram, unit)
    return weights.T @ smoothed


def update_within(basis_dm: Tensor, keys_Nd: Tensor, ridge: float, new: int) -> Tensor:
    """The same for S = B B^T / ridge, by a solve of size m: cheaper once N > m."""
    inner = keys_Nd.double() @ basis_dm.double()
    system = inner.T @ inner
    system.diagonal().add_(ridge)
    weights: Tensor = torch.linalg.solve(system, inner[len(inner) - new :].T)
    return weights.T @ basis_dm.double().T


def smoothed(lower_dd: Tensor, keys_Nd: Tensor) -> Tensor:
    """[N, d] M^-1 k for each key, from the Cholesky factor of M."""
    return torch.cholesky_solve(keys_Nd.to(lower_dd).T, lower_dd).T
