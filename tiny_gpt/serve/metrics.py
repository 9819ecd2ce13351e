"""What the server counts, in the text form of Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tiny_gpt.serve.models import ServedModels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Of one server."""

    def __init__(self, models: ServedModels) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_SchedulerCollector(models))
        self.requests = Counter("tiny_gpt_requests", "Requests by status", ["status"], registry=self._registry)
        self.first_token_s = Histogram(
            "tiny_gpt_first_token_seconds",
            "From a request to its first token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.request_s = Histogram(
            "tiny_gpt_request_seconds", "From a request to its end", buckets=SECONDS, registry=self._registry
        )

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _SchedulerCollector(Collector):
    """Reads the schedulers' own counts."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        written = CounterMetricFamily("tiny_gpt_tokens_written", "Tokens written", labels=["model"])
        read = CounterMetricFamily("tiny_gpt_prompt_tokens_read", "Tokens of prompts", labels=["model"])
        running = GaugeMetricFamily("tiny_gpt_texts_running", "Texts that are being written", labels=["model"])
        waiting = GaugeMetricFamily("tiny_gpt_requests_waiting", "Requests that wait", labels=["model"])
        for model in self._models:
            written.add_metric([model.name], model.scheduler.n_written)
            read.add_metric([model.name], model.scheduler.n_read)
            running.add_metric([model.name], model.scheduler.n_running)
            waiting.add_metric([model.name], model.scheduler.n_waiting)
        yield from (written, read, running, waiting)
