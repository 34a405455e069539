"""Counters, gauges and histograms in the text format of Prometheus (version 0.0.4), for one process.

Label values come from fixed sets (routes, statuses, categories), never from a request's text, so their number is bounded.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import threading
from collections.abc import Callable, Iterator, Mapping

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_RESPONSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

COUNTERS = {
    "dmoerm_requests_total": ("Requests answered, by route and status.", ("route", "status")),
    "dmoerm_responses_scored_total": ("Responses that got a reward, by the category that judged.", ("category",)),
    "dmoerm_responses_failed_total": ("Responses that could not be scored (empty, say).", ()),
    "dmoerm_responses_cut_total": ("Responses scored with prompt or response cut to the model's budget.", ()),
    "dmoerm_unsplit_total": ("Texts in which no prompt could be told from the response; judged whole, by the general model.", ("dialect",)),
    "dmoerm_refused_total": ("Requests refused before scoring, by reason.", ("reason",)),
    "dmoerm_dropped_total": ("Requests dropped unanswered because the client had gone.", ()),
    "dmoerm_model_errors_total": ("Passes of the model that raised an error.", ()),
}
HISTOGRAMS = {
    "dmoerm_request_seconds": ("From the first byte to the answer, by route.", ("route",), _SECONDS),
    "dmoerm_batch_seconds": ("One micro-batch in the model.", (), _SECONDS),
    "dmoerm_batch_responses": ("Responses in one micro-batch.", (), _RESPONSES),
}
_Key = tuple[str, ...]


class Metrics:
    """All numbers of a server; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[_Key, float]] = {name: {} if labels else {(): 0.0} for name, (_, labels) in COUNTERS.items()}
        self._buckets: dict[str, dict[_Key, list[float]]] = {name: {} for name in HISTOGRAMS}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Raise a counter."""
        assert len(labels) == len(COUNTERS[name][1])
        with self._lock:
            values = self._counts[name]
            values[labels] = values.get(labels, 0.0) + by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Enter one value into a histogram."""
        _, names, bounds = HISTOGRAMS[name]
        assert len(labels) == len(names)
        with self._lock:
            row = self._buckets[name].setdefault(labels, [0.0] * (len(bounds) + 2))
            for place, bound in enumerate(bounds):
                row[place] += value <= bound
            row[-2] += 1
            row[-1] += value

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A number that is read when somebody asks."""
        self._gauges[name] = (help_text, read)

    def text(self) -> str:
        """The page that Prometheus scrapes."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        with self._lock:
            counts = {name: dict(values) for name, values in self._counts.items()}
            buckets = {name: {key: list(row) for key, row in rows.items()} for name, rows in self._buckets.items()}
        for name, (help_text, labels) in COUNTERS.items():
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} counter")
            for key, value in sorted(counts[name].items()):
                yield f"{name}{_labels(dict(zip(labels, key, strict=True)))} {value:g}"
        for name, (help_text, read) in self._gauges.items():
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {read():g}")
        for name, (help_text, labels, bounds) in HISTOGRAMS.items():
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} histogram")
            for key, row in sorted(buckets[name].items()):
                named = dict(zip(labels, key, strict=True))
                for bound, count in zip((*bounds, float("inf")), row, strict=False):
                    yield f"{name}_bucket{_labels({**named, 'le': '+Inf' if bound == float('inf') else f'{bound:g}'})} {count:.0f}"
                yield f"{name}_sum{_labels(named)} {row[-1]:.6g}"
                yield f"{name}_count{_labels(named)} {row[-2]:.0f}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in labels.values())
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(labels, escaped, strict=True)) + "}"
