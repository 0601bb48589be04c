"""What can be seen of a running service: structured logs and Prometheus metrics."""

import json
import logging
import os
import sys
import time
from typing import Any, final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["CONTENT_TYPE_LATEST", "MULTIPROCESS", "Meters", "log_to_stderr"]

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@final
class _JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; ``extra={"fields": {...}}`` gives the keys."""
        line: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        line |= fields if isinstance(fields, dict) else {"event": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Write what the service and its server have to say to stderr, one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for name, level in (("nas.service", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


@final
class Meters:
    """Counters of one service; with several processes, ``PROMETHEUS_MULTIPROC_DIR`` joins them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nas_requests", "answers by route and status", ["route", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "nas_request_seconds", "seconds from request to answer", ["route"], registry=self.registry, buckets=_BUCKETS
        )
        self.cache = Counter("nas_weights", "weight files by how they were found", ["result"], registry=self.registry)
        self.pending = Gauge(
            "nas_pending", "computations running or waiting", registry=self.registry, multiprocess_mode="livesum"
        )

    def answered(self, route: str, code: int, started: float) -> None:
        """Count an answer that was begun at ``started`` (``time.perf_counter``)."""
        self.requests.labels(route, str(code)).inc()
        self.seconds.labels(route).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """Return all counters in the text format of Prometheus."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self.registry)
        joined = CollectorRegistry()
        MultiProcessCollector(joined)  # type: ignore[no-untyped-call]
        return generate_latest(joined)
