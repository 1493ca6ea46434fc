"""The sentences of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.sufficiency.quality import QualityCurve


def coverage_sentence(row: Mapping[str, Any]) -> str:
    """Return the sentence on the traffic that a threshold would have covered."""
    return (
        f"With at least {row['threshold']} events in {row['window_days']:g} days, the selection would have covered "
        f"{row['users_share']:.1%} of the next day's users and {row['traffic_share']:.1%} of its traffic, over "
        f"{len(row['days'])} days."
    )


def quality_sentence(curve: QualityCurve) -> str:
    """Return the sentence on the window length from which more data does not help."""
    if not curve.windows:
        return f"Quality against window length was not measured: {curve.why_not}."
    longest = curve.windows[-1].days
    if curve.enough_days is None or curve.enough_days >= longest:
        return (
            f"More data still pays: half of the {longest:.3g} days before the ranker part is clearly worse than all "
            "of it."
        )
    all_of_it = curve.windows[-1].loss
    older = "makes it clearly worse" if all_of_it and all_of_it.verdict == "gains" else "makes no measurable difference"
    return f"More data stops paying at {curve.enough_days:.3g} of {longest:.3g} days: what is older {older}."
