"""Solves against routes of their own: numpy normal equations, literal systems, hand-made cases.

d=60 features, h=5 outputs, n=7 keys, as in the acceptance tests of locate-then-edit editors.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from errata.linalg import covariance, lowrank, nullspace, solve

D, H, N, PAST = 60, 5, 7, 11


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_rng(seed), dtype=torch.float64)


@pytest.fixture
def toy() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C [d, d], keys [n, d], remembered keys [p, d], residuals R [h, n]."""
    samples = _normal(400, D, seed=1) * torch.linspace(0.05, 2, D, dtype=torch.float64)
    return samples.T @ samples / 400, _normal(N, D, seed=2), _normal(PAST, D, seed=3), _normal(H, N)


def test_memit_equals_the_normal_equations(toy):
    """dW = R K^T (lambda C + K_p K_p^T + K K^T)^-1 by numpy, and the gradient is zero there."""
    c, k, past, r = toy
    lower = covariance.factor(c, 15.0)
    both = torch.cat([past, k])
    made = r @ solve.update(both, solve.smoothed(lower, both), N)
    system = 15.0 * c.numpy() + past.numpy().T @ past.numpy() + k.numpy().T @ k.numpy()
    wanted = r.numpy() @ k.numpy() @ np.linalg.inv(system)
    assert np.abs(made.numpy() - wanted).max() < 1e-10
    w = made.clone().requires_grad_(True)
    loss = 15.0 * (w @ c @ w.T).trace() + (w @ past.T).square().sum()
    loss = loss + (w @ k.T - r).square().sum()
    assert float(torch.autograd.grad(loss, w)[0].abs().max()) < 1e-10


def test_without_a_price_the_keys_get_their_values(toy):
    """lambda -> 0 and n < d: (W + dW) K = W K + R."""
    c, k, _, r = toy
    x = solve.update(k, solve.smoothed(covariance.factor(c, 1e-9), k), N)
    assert float((r @ x @ k.T - r).abs().max()) < 1e-6


def test_the_ridge_is_relative_to_the_mean_diagonal(toy):
    c = toy[0]
    lower = covariance.factor(c, 3.0, 0.05)
    wanted = 3.0 * (c + 0.05 * c.diagonal().mean() * torch.eye(D, dtype=torch.float64))
    assert torch.allclose(lower @ lower.T, wanted, atol=1e-12)
    flat = torch.zeros(3, 3)
    flat[0, 0] = 1.0  # two features that never moved
    assert covariance.factor(flat, 1.0) is None
    assert covariance.factor(flat, 1.0, 0.1) is not None


def _projector(c: Tensor, threshold: float) -> Tensor:
    """By SVD, as first published."""
    u, s, _ = torch.linalg.svd(c)
    u0 = u[:, s < threshold]
    return u0 @ u0.T


@pytest.mark.parametrize("threshold", [0.05, 1.0])
def test_alphaedit_in_three_forms(toy, threshold):
    """Literal solve with P, reduced basis and dual agree; the solution lies in range(P)."""
    c, k, past, r = toy
    space = nullspace.null_space(c, threshold)
    p = _projector(c, threshold)
    assert space.rank == round(float(p.trace()))
    assert 0 < space.rank < D and space.inside == (space.rank <= D // 2)
    eye, both = torch.eye(D, dtype=torch.float64), torch.cat([past, k])
    system = p @ (k.T @ k + past.T @ past) + 10.0 * eye
    literal = torch.linalg.solve(system, p @ k.T @ r.T).T
    dual = r @ solve.update(both, space.project(both) / 10.0, N)
    u0 = torch.linalg.eigh(c).eigenvectors[:, : space.rank]
    reduced = r @ solve.update_within(u0, both, 10.0, N)
    assert float((dual - literal).abs().max()) < 1e-12
    assert float((reduced - literal).abs().max()) < 1e-12
    assert float((dual @ (eye - p)).abs().max()) < 1e-12
    assert float((dual @ c).norm() / dual.norm()) < threshold


def test_softened_alphaedit_is_a_plain_ridge(toy):
    """P' = a P + (1 - a) I on both sides = ridge L2 inside the null space, L2 / (1 - a) outside."""
    c, k, past, r = toy
    p, eye, a = _projector(c, 0.4), torch.eye(D, dtype=torch.float64), 0.7
    both = torch.cat([past, k])
    made = r @ solve.update(both, nullspace.null_space(c, 0.4).project(both, a) / 10.0, N)
    grams = k.T @ k + past.T @ past
    ridge = torch.linalg.solve(grams + 10.0 * (p + (eye - p) / (1 - a)), k.T @ r.T).T
    soft = a * p + (1 - a) * eye
    published = torch.linalg.solve(soft @ grams + 10.0 * eye, soft @ k.T @ r.T).T
    assert float((made - ridge).abs().max()) < 1e-12
    assert float((made - published).abs().max()) < 1e-12


def test_a_constant_on_the_diagonal_only_moves_the_threshold(toy):
    c = toy[0]
    shifted = nullspace.null_space(c + 0.1 * torch.eye(D, dtype=torch.float64), 0.4)
    moved = nullspace.null_space(c, 0.4 - 0.1)
    x = _normal(4, D, seed=9)
    assert shifted.rank == moved.rank
    assert float((shifted.project(x) - moved.project(x)).abs().max()) < 1e-10


def test_eigenvalues_need_float64():
    """One outlier feature of 1e5 hides eigenvalues of 1e-3 from float32, not from float64."""
    q, _ = torch.linalg.qr(_normal(40, 40, seed=4))
    values = torch.full((40,), 1e-3, dtype=torch.float64)
    values[0] = 1e5
    c = q @ torch.diag(values) @ q.T
    assert nullspace.null_space(c, 2e-3).rank == 39
    noisy = torch.linalg.eigh(c.float()).eigenvalues
    assert float((noisy[:39] - 1e-3).abs().max()) > 1e-3


def test_moments_do_not_depend_on_how_they_came(toy):
    x = _normal(50, D, seed=5).float()
    whole, parts = covariance.Moment(D), [covariance.Moment(D) for _ in range(3)]
    whole.add(x)
    for part, some in zip(parts, (x[:7], x[7:30], x[30:]), strict=True):
        part.add(some)
    brute = np.einsum("ni,nj->ij", x.double().numpy(), x.double().numpy()) / 50
    assert np.abs(whole.mean().numpy() - brute).max() < 1e-6
    merged = covariance.merge([p.mean() for p in parts], [p.count for p in parts])
    assert float((merged - whole.mean()).abs().max()) < 1e-6
    assert covariance.scale(torch.diag(torch.tensor([1.0, 3.0]))) == 2.0


def test_sizes_and_limits_of_a_low_rank_change():
    a, b = _normal(3, 20, seed=6), _normal(8, 3, seed=7)
    size = float((b @ a).norm())
    assert lowrank.norm(a, b) == pytest.approx(size, rel=1e-12)
    cut, factor = lowrank.limited(a, b, size / 4)
    assert factor == pytest.approx(0.25) and lowrank.norm(a, cut) == pytest.approx(size / 4)
    assert lowrank.limited(a, b, size * 2)[1] == 1.0


@pytest.mark.parametrize(("ratio", "least", "most"), [(3e-4, 0.7, 1.0), (1e-2, 0.0, 0.4)])
def test_rounding_once_in_bfloat16(ratio, least, most):
    """Small changes mostly vanish between two bfloat16 numbers, larger ones stay; float32 keeps."""
    w, a, b = _normal(64, 96, seed=8), _normal(20, 96, seed=9), _normal(64, 20, seed=10)
    w = w.to(torch.bfloat16).double()
    b = b * (ratio * w.norm() / (b @ a).norm())
    assert least < lowrank.rounding(w, a, b, torch.bfloat16) < most
    assert lowrank.rounding(w, a, b, torch.float32) < 1e-3
