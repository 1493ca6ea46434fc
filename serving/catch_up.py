"""Brings a freshly loaded release up to date with the event log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from serving.events import Event, Post
from serving.funnel import Funnel


def replay(funnel: Funnel, posts: Iterable[Post]) -> Counter[str]:
    """Apply every logged event that the release's state does not hold yet, in the log's order.

    An event is applied if it came in while this release was served, if it is not older than the release's as-of time,
    or if it came late and the state has no touch of that item by that user. Events with items or signals that the
    release does not know stay in the log for a release that does.

    Returns:
        How many events were ``applied``, already ``contained``, or ``unknown`` to the release.
    """
    counts: Counter[str] = Counter()
    for post in posts:
        same_release = post.release_id == funnel.release_id
        for event in post.events:
            counts[_replay_one(funnel, event, same_release)] += 1
    return counts


def _replay_one(funnel: Funnel, event: Event, same_release: bool) -> str:
    # Logged events were accepted once: their times are not checked against the present clock again.
    # Their context is not checked either: it stays in the log for a release that reads it.
    if funnel.event_faults(replace(event, context={}), event.event_time_ms):
        return "unknown"
    fresh = same_release or event.event_time_ms >= funnel.release.manifest.as_of_ms
    exposure = event.signal in funnel.release.config.exposure_signals
    if not fresh and (exposure or funnel.contains(event)):
        return "contained"
    funnel.apply_logged(event)
    return "applied"
