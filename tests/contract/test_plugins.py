"""The contracts of gates, benchmarks, protocols, metrics, judges; `errata check`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from errata import contract
from errata.contract import benchmarks, gates, judges, metrics, protocols
from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe


def cases() -> list[Any]:
    return [
        pytest.param(kind, name, check, id=f"{kind}-{name}-{check.__name__}")
        for kind, module in (
            ("benchmarks", benchmarks),
            ("protocols", protocols),
            ("metrics", metrics),
        )
        for name in registry.names(kind)
        for check in (f for n, f in vars(module).items() if n.startswith("holds_"))
    ]


@pytest.mark.parametrize(("kind", "name", "check"), cases())
def test_every_plugin(kind: str, name: str, check: Any) -> None:
    check(registry.load(kind, name)())


@pytest.mark.parametrize("check", [f for n, f in vars(gates).items() if n.startswith("holds_")])
@pytest.mark.parametrize("name", registry.names("gates"))
def test_every_gate(name: str, check: Any) -> None:
    check(registry.load("gates", name))


@pytest.mark.parametrize("check", [f for n, f in vars(judges).items() if n.startswith("holds_")])
@pytest.mark.parametrize("name", registry.names("judges"))
def test_every_judge(name: str, check: Any) -> None:
    check(partial(judges.make, registry.load("judges", name)))


def test_check_prints_a_line_per_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert contract.run("exact")
    assert capsys.readouterr().out.count("holds") >= 3
    with pytest.raises(BadSpec, match="no contract checks"):
        contract.run("hf_vlm")


class TooGenerous(Metric):
    name = "too_generous"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        return 2.0


def test_a_wrong_metric_is_found() -> None:
    with pytest.raises(AssertionError):
        metrics.holds_range(TooGenerous())
