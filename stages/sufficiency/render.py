"""The dataset report as one HTML page with inline SVG plots; it loads no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from stages.sufficiency.words import coverage_sentence

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dataset report {{ fingerprint[:12] }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #8895a3 } td:first-child, th:first-child { text-align: left }
tr.own { background: #fff3cd } .sentence { font-size: 1.1rem } svg { max-width: 100%; height: auto }
</style></head><body>
<h1>How much data is enough</h1>
<p>Data {{ fingerprint[:12] }}, as of {{ as_of }}. The held-out part is never looked at for the quality below.</p>
<h2>What the selection would have covered of tomorrow</h2>
<p class="sentence">{{ coverage }}</p>
<p>A day is the 24 hours after its start; whether somebody is selected is judged by what came before it.</p>
{{ plots.thresholds | safe }}
{{ plots.days | safe }}
<table><tr><th>window</th><th>at least</th><th>users covered</th><th>traffic covered</th></tr>
{% for row in users %}<tr{% if row.own %} class="own"{% endif %}><td>{{ "%g"|format(row.window_days) }} days</td>
<td>{{ row.threshold }}</td><td>{{ "%.1f%%"|format(100 * row.users_share) }}</td>
<td>{{ "%.1f%%"|format(100 * row.traffic_share) }}</td></tr>
{% endfor %}</table>
<h3>Items</h3>
<p>The same for items: the share of a day's items, and of its traffic, with at least so many events before it.</p>
<table><tr><th>at least</th><th>items covered</th><th>traffic covered</th></tr>
{% for row in items %}<tr><td>{{ row.threshold }}</td><td>{{ "%.1f%%"|format(100 * row.users_share) }}</td>
<td>{{ "%.1f%%"|format(100 * row.traffic_share) }}</td></tr>
{% endfor %}</table>
<h2>Quality against window length</h2>
<p class="sentence">{{ quality.sentence }}</p>
{% if quality.windows %}<p>{{ quality.metric }} of item-to-item cosine on {{ quality.requests }} requests of the
ranker part, taught by the latest days before it; the bars are 95% intervals of the difference to the best window
(bootstrap over users).</p>
{{ plots.quality | safe }}
<table><tr><th>days</th><th>user-item pairs</th><th>{{ quality.metric }}</th><th>best is better by</th></tr>
{% for row in quality.windows %}<tr><td>{{ "%.3g"|format(row.days) }}</td><td>{{ "{:,}".format(row.events) }}</td>
<td>{{ "%.4f"|format(row.ndcg) }}</td><td>{% if row.loss %}{{ "%.4f"|format(row.loss.value) }}
[{{ "%.4f"|format(row.loss.low) }}, {{ "%.4f"|format(row.loss.high) }}]{% else %}the best{% endif %}</td></tr>
{% endfor %}</table>{% endif %}
<h2>What was selected, what was removed and why</h2>
<table><tr><th>count</th><th></th></tr>
{% for name, value in counts %}<tr><td>{{ name }}</td><td>{{ "{:,}".format(value) }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def render_html(report: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        report: as ``dataset_report.json`` holds it.
    """
    own = (report["activity"]["window_days"], report["activity"]["min_events"])
    users = [{**row, "own": (row["window_days"], row["threshold"]) == own} for row in report["users"]]
    mine = [row for row in users if row["window_days"] == own[0]]
    chosen = next(row for row in users if row["own"])
    plots = {"thresholds": _plot_thresholds(users, own[1]), "days": _plot_days(mine)}
    if report["quality"]["windows"]:
        plots["quality"] = _plot_quality(report["quality"])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        fingerprint=report["data_fingerprint"],
        as_of=datetime.fromtimestamp(report["as_of_ms"] / 1000, UTC).isoformat(timespec="seconds"),
        coverage=coverage_sentence(chosen),
        users=users,
        items=report["item_support"],
        quality=report["quality"],
        counts=sorted(report["counts"].items()),
        plots=plots,
    )


def _plot_thresholds(users: list[dict[str, Any]], own: int) -> str:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, share, title in zip(
        figure.subplots(1, 2, sharey=True), ("users_share", "traffic_share"), ("users", "traffic"), strict=True
    ):
        for days in sorted({row["window_days"] for row in users}):
            rows = [row for row in users if row["window_days"] == days]
            axes.plot(
                [row["threshold"] for row in rows], [100 * row[share] for row in rows], "o-", label=f"{days:g} days"
            )
        axes.axvline(own, color="#b58900", linestyle=":")
        axes.set(xscale="log", xlabel="at least so many events", title=f"next day's {title} covered", ylim=(0, 105))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("%")
    figure.axes[1].legend(title="window")
    return _svg(figure)


def _plot_days(rows: list[dict[str, Any]]) -> str:
    """Draw the coverage by day and threshold, for the recipe's own window."""
    figure = Figure(figsize=(10, 0.5 + 0.45 * max(len(rows), 3)), layout="constrained")
    labels = [datetime.fromtimestamp(day["start_ms"] / 1000, UTC).strftime("%d %b") for day in rows[0]["days"]]
    for axes, part, whole, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("covered", "covered_events"),
        ("seen", "events"),
        ("users", "traffic"),
        strict=True,
    ):
        shares = [[100 * day[part] / day[whole] if day[whole] else np.nan for day in row["days"]] for row in rows]
        image = axes.imshow(shares, aspect="auto", vmin=0, vmax=100, cmap="viridis")
        axes.set(title=f"{title} covered, day by day", yticks=range(len(rows)))
        axes.set_yticklabels([f"≥ {row['threshold']}{' (own)' if row['own'] else ''}" for row in rows])
        step = max(1, len(labels) // 7)
        axes.set_xticks(range(0, len(labels), step), labels[::step])
    figure.colorbar(image, ax=figure.axes, label="%")
    return _svg(figure)


def _plot_quality(quality: Mapping[str, Any]) -> str:
    windows = quality["windows"]
    best = max(row["ndcg"] for row in windows)
    days = [row["days"] for row in windows]
    low = [best - row["loss"]["high"] if row["loss"] else row["ndcg"] for row in windows]
    high = [best - row["loss"]["low"] if row["loss"] else row["ndcg"] for row in windows]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(days, [row["ndcg"] for row in windows], "o-", color="#1f4e79")
    axes.vlines(days, low, high, color="#1f4e79", alpha=0.5, linewidth=3)
    if quality["enough_days"] is not None:
        axes.axvline(quality["enough_days"], color="#b58900", linestyle=":")
    axes.set(xscale="log", xlabel="days before the ranker part", ylabel=quality["metric"])
    axes.grid(alpha=0.3)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element without a date or external references."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "sluice", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
