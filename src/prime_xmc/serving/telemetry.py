"""What a server counts and times, in the format of Prometheus."""

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from prime_xmc.serving.batching import BatchRecord
from prime_xmc.serving.served_model import ReloadOutcome, ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("prime_xmc_requests", "Requests.", ["method", "path", "status"], registry=registry)
        self.latency = Histogram(
            "prime_xmc_request_seconds", "Time from request to answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.errors = Counter(
            "prime_xmc_errors", "Requests without the answer they asked for.", ["reason"], registry=registry
        )
        self.texts = Counter("prime_xmc_texts", "Texts that were answered.", registry=registry)
        self.batch_texts = Histogram("prime_xmc_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=registry)
        self.batch_seconds = Histogram(
            "prime_xmc_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=registry
        )
        self.wait_seconds = Histogram(
            "prime_xmc_wait_seconds",
            "Longest wait of a batch's texts in the queue.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("prime_xmc_waiting_texts", "Texts that wait for the model.", registry=registry)
        self.gone = Counter("prime_xmc_gone_clients", "Clients that did not wait for the answer.", registry=registry)
        self.reloads = Counter(
            "prime_xmc_reloads", "Attempts to load the model folder again.", ["result"], registry=registry
        )
        self.model = Gauge(
            "prime_xmc_model_info",
            "The model that is served.",
            ["version", "scorer", "labels", "package"],
            registry=registry,
        )
        self.loaded = Gauge("prime_xmc_model_loaded_timestamp_seconds", "When the model was loaded.", registry=registry)
        ProcessCollector(registry=registry)

    def record_batch(self, record: BatchRecord) -> None:
        """Count a batch."""
        self.texts.inc(record.texts)
        self.batch_texts.observe(record.texts)
        self.batch_seconds.observe(record.seconds)
        self.wait_seconds.observe(record.waited)

    def record_reload(self, outcome: ReloadOutcome) -> None:
        """Count an attempt to load the model folder again."""
        self.reloads.labels(outcome.result).inc()

    def show_model(self, model: ServedModel) -> None:
        """Show a model as the one that is served."""
        self.model.clear()
        labels = str(model.predictor.num_labels)
        self.model.labels(model.version, model.scorer, labels, version("prime_xmc")).set(1)
        self.loaded.set(model.loaded.timestamp())

    def page(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)
