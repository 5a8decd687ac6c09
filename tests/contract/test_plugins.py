"""The contracts of gates, benchmarks, protocols, metrics, judges; `errata check`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from errata import contract
from errata.contract import benchmarks, gates, judges, metrics, protocols, scopes
from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe
from errata.metrics.exact import Exact


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


@pytest.mark.parametrize("check", [f for n, f in vars(scopes).items() if n.startswith("holds_")])
@pytest.mark.parametrize("name", registry.names("scopes"))
def test_every_scope(name: str, check: Any) -> None:
    check(registry.load("scopes", name))


@pytest.mark.parametrize("check", [f for n, f in vars(judges).items() if n.startswith("holds_")])
@pytest.mark.parametrize("name", registry.names("judges"))
def test_every_judge(name: str, check: Any) -> None:
    check(partial(judges.make, registry.load("judges", name)))


def test_check_prints_a_line_per_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert contract.run("exact")
    printed = capsys.readouterr().out
    assert printed.count("holds") >= 4 and "4 of 4 properties hold" in printed
    with pytest.raises(BadSpec, match="no contract checks"):
        contract.run("hf_vlm")


def test_a_check_names_whatever_a_plugin_does_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another name than it is registered under; an error of its own code, with file and line."""
    monkeypatch.setattr(Exact, "name", "exacter")

    def breaks(*_: Any) -> None:
        raise IndexError("index 2 is out of bounds")

    monkeypatch.setattr(Exact, "score", breaks)
    assert not contract.run("exact")
    printed = capsys.readouterr().out
    assert "registered as 'exact', but the class is named 'exacter'" in printed
    assert "IndexError: index 2 is out of bounds" in printed and "test_plugins.py, line" in printed
    assert "0 of 4 properties hold" in printed


class TooGenerous(Metric):
    name = "too_generous"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        return 2.0


def test_a_wrong_metric_is_found() -> None:
    with pytest.raises(AssertionError):
        metrics.holds_range(TooGenerous())
