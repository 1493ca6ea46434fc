"""Which linear baselines fit their memory, known from the sizes of the touches alone."""

from __future__ import annotations

from stages.candidate.linear.config import BaselinesConfig
from stages.candidate.linear.models import als_gigabytes, ease_method


def baselines_left_out(config: BaselinesConfig, users: int, items: int, touches: int) -> dict[str, str]:
    """Return why a baseline is left out, by the name of its row; it follows from the sizes of the touches alone."""
    method = ease_method(config.ease, users, items, touches, config.memory_gb)
    needed = {
        "ease": (method.gigabytes, f" {method.how}"),
        "ials": (als_gigabytes(users, items, touches, config.ials.factors), ""),
    }
    left_out = {}
    for name, (gigabytes, how) in needed.items():
        if name not in config.rows:
            left_out[name] = f"baselines.rows = {list(config.rows)}"
        elif gigabytes > config.memory_gb:
            left_out[name] = f"{items:,} items need {gigabytes:.3g} GB{how}, baselines.memory_gb = {config.memory_gb:g}"
    return left_out
