"""The server's metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CLIENT_GONE = 499
"""Status under which a request is counted if its client hung up. HTTP has none for it; nginx uses this one."""
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Prometheus metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sluice_requests",
            "HTTP requests by path and status (499: client gone)",
            ["path", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "sluice_request_seconds", "Time to answer by path", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "sluice_stage_seconds", "Time in each funnel stage", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.answers = Counter(
            "sluice_answers", "Recommendations by path through the funnel", ["path"], registry=self.registry
        )
        self.events = Counter(
            "sluice_events", "Posted events: accepted or duplicate", ["result"], registry=self.registry
        )
        self.refused_posts = Counter(
            "sluice_event_posts_refused", "Posts of events in which something was wrong", registry=self.registry
        )
        self.replayed = Counter(
            "sluice_events_replayed",
            "Logged events met when a release was loaded: applied, contained, unknown",
            ["result"],
            registry=self.registry,
        )
        self.torn_bytes = Gauge(
            "sluice_event_log_torn_bytes", "Bytes of an unfinished last line dropped at start", registry=self.registry
        )
        self.damaged_lines = Gauge(
            "sluice_event_log_damaged_lines",
            "Lines inside the event log that were not posts and were skipped at start",
            registry=self.registry,
        )
        self.changed_parts = Counter(
            "sluice_release_parts_changed",
            "Files of the served release that somebody changed on the disk",
            registry=self.registry,
        )
        self.stale = Gauge(
            "sluice_release_stale",
            "1 while the last attempt to find or load a newer release failed",
            registry=self.registry,
        )
        self.release = Gauge(
            "sluice_release_info", "The release that is served", ["release_id"], registry=self.registry
        )
        self.release_as_of = Gauge(
            "sluice_release_as_of_seconds", "As-of time of the served release, Unix seconds", registry=self.registry
        )
        self.reloads = Counter("sluice_reloads", "Releases taken into service", registry=self.registry)
        self.reload_failures = Counter(
            "sluice_reload_failures", "New releases that could not be loaded", registry=self.registry
        )

    def set_release(self, release_id: str, as_of_ms: int) -> None:
        """Show ``release_id`` as the one that is served."""
        self.release.clear()
        self.release.labels(release_id).set(1)
        self.release_as_of.set(as_of_ms / 1000)
