"""What the server counts, for Prometheus. One registry per server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class ServeMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "errata_requests", "Requests by route and status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "errata_request_seconds", "From the first byte of a request to its last.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            "errata_tokens", "Tokens of prompts and of answers.", ["kind"], registry=self.registry
        )
        self.rows = Histogram(
            "errata_forward_rows", "Answers that one forward of the model served.",
            buckets=ROWS, registry=self.registry,
        )  # fmt: skip
        self.edits = Counter(
            "errata_edits", "Edits by whether they hold.", ["holds"], registry=self.registry
        )
        self.bugs = Counter(
            "errata_bugs", "Failures that the log explains.", registry=self.registry
        )

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        Gauge(f"errata_{name}", what, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self.registry)
