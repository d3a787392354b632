"""Prometheus counters, in the words of the glossary, one registry per application."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from creditd.engines.protocol import EngineStatus, EngineUsage
from creditd.server.cache_metrics import CacheMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("creditd_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.request_seconds = Histogram(
            "creditd_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("creditd_requests_in_flight", "Requests being worked on.", registry=self.registry)
        self.held_bytes = Gauge(
            "creditd_held_bytes",
            "Bodies that are being read or answered, and answers not read yet.",
            registry=self.registry,
        )
        self.items = Counter(
            "creditd_items",
            "Candidate sets, groups or completions, by outcome.",
            ("route", "status"),
            registry=self.registry,
        )
        self.item_errors = Counter(
            "creditd_item_errors",
            "Candidate sets, groups or completions without an answer.",
            ("code",),
            registry=self.registry,
        )
        self.flags = Counter("creditd_flags", "Flags raised on items.", ("flag",), registry=self.registry)
        self.draining = Gauge("creditd_draining", "1 while the process is shutting down.", registry=self.registry)

        self.evaluations = Counter(
            "creditd_evaluations", "Texts that a model scored.", ("model",), registry=self.registry
        )
        self.tokens = Counter(
            "creditd_model_tokens",
            "Tokens that went through a model (computed), and those of all texts one by one (naive).",
            ("model", "kind"),
            registry=self.registry,
        )
        self.engine_seconds = Counter(
            "creditd_engine_seconds", "Seconds of a model's device.", ("model",), registry=self.registry
        )
        self.queued_tokens = Gauge(
            "creditd_engine_queued_tokens", "Tokens that wait for a model.", ("model",), registry=self.registry
        )
        self.silent_seconds = Gauge(
            "creditd_engine_silent_seconds",
            "Seconds since the last sign of life of a model that has work.",
            ("model",),
            registry=self.registry,
        )

        self.weight_swaps = Counter(
            "creditd_weight_swaps", "Times that weights of a policy were replaced.", ("model",), registry=self.registry
        )
        self.weight_swap_seconds = Histogram(
            "creditd_weight_swap_seconds",
            "Seconds for which a policy answered nothing because its weights were replaced.",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )

        self.cache = CacheMetrics(self.registry)

    def count_engine(self, model: str, usage: EngineUsage) -> None:
        """Count what a model did for one request."""
        self.evaluations.labels(model).inc(usage.evaluations)
        self.tokens.labels(model, "computed").inc(usage.tokens_computed)
        self.tokens.labels(model, "naive").inc(usage.tokens_naive)
        self.engine_seconds.labels(model).inc(usage.engine_s)

    def look_at(self, statuses: Iterable[EngineStatus]) -> None:
        """Take what the models say of themselves."""
        for status in statuses:
            self.queued_tokens.labels(status.spec.id).set(status.queued_tokens)
            self.silent_seconds.labels(status.spec.id).set(status.silent_s)

    def exposition(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)
