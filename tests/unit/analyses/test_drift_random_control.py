"""A random change has the sites, ranks and norms of the edit, and no direction of it."""

from __future__ import annotations

import torch

from errata.analyses.drift.random_control import random_control
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.patches.stack import Stack


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def weight(part):
    found = part["dense"] if "dense" in part else part["B"] @ part["A"]
    return found.detach()


def test_norms_sites_and_ranks_are_kept():
    low = {"A": torch.randn(3, 40, generator=rng(1)), "B": torch.randn(20, 3, generator=rng(2))}
    dense = {"dense": torch.randn(20, 40, generator=rng(3)) * 7, "bias": torch.ones(20)}
    patch = Delta({"text.0.mlp.down": low, "text.1.mlp.down": dense})
    made = random_control(patch, rng(5))
    assert isinstance(made, Delta) and made.sites == patch.sites
    for site in patch.sites:
        a, b = weight(patch.part(site)), weight(made.part(site))
        torch.testing.assert_close(a.norm(), b.norm(), rtol=1e-4, atol=0)
        cosine = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        assert abs(float(cosine)) < 0.2
    assert made.part("text.0.mlp.down")["A"].shape == low["A"].shape
    torch.testing.assert_close(
        made.part("text.1.mlp.down")["bias"].detach().norm(), torch.tensor(20.0).sqrt()
    )
    assert not any(p.requires_grad for p in made.parameters())


def test_it_depends_on_the_generator_alone():
    patch = Delta({"text.0.mlp.down": {"dense": torch.randn(4, 6, generator=rng(1))}})
    one, same, other = (
        weight(random_control(patch, rng(s)).part("text.0.mlp.down")) for s in (0, 0, 1)
    )
    assert one.equal(same) and not one.equal(other)


def test_a_stack_of_deltas_is_one_too_and_other_shapes_are_not():
    parts = [Delta({f"text.{i}.mlp.down": {"dense": torch.ones(2, 3)}}) for i in range(2)]
    made = random_control(Stack(parts), rng())
    assert made is not None and made.sites == {"text.0.mlp.down", "text.1.mlp.down"}
    assert random_control(Stack([]), rng()) is None
    neurons = {"key": torch.ones(2, 3), "value": torch.ones(4, 2), "bias": torch.zeros(2)}
    assert random_control(Neurons({"text.0.mlp": neurons}), rng()) is None
