"""The stage ledger as Markdown, as plain text for the terminal and as one HTML file.

All three read the ledger's data alone, so that a report can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from tabulate import tabulate

from stages.contracts.files import atomic_file

Table = tuple[list[str], list[list[str]]]

_VERDICTS = {
    "gains": "gains on {}",
    "loses": "loses to {}",
    "no difference": "no difference to {}",
    "too few users": "too few users to tell from {}",
}
_PAGE = """{% macro table(header, rows) -%}
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Stage ledger</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } th { background: #f5f5f5 }
</style></head><body>
<h1>Stage ledger</h1>
{{ table(*stages) }}
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}<h2>Slices</h2>
{% for each in slices %}{{ table(*each) }}
{% endfor %}<p>Data fingerprint {{ data_fingerprint }}</p>
</body></html>
"""


def main_table(ledger: Mapping[str, Any]) -> Table:
    """Return (header, rows) of the ledger: one row per stage, with its gain and verdict."""
    k, last = ledger["config"]["ks"][0], ledger["config"]["ks"][-1]
    wanted = (f"ndcg@{k}", f"recall@{k}", f"recall@{last}", f"recall@{ledger['config']['candidate_k']}")
    names = list(dict.fromkeys((*wanted, f"mrr@{k}", f"hit_rate@{k}", f"coverage@{k}", f"popularity_share@{k}")))
    rows = [
        [row["name"], *(f"{row['metrics'][name]:.4f}" for name in names), _gain(row["gain"]), _verdict(row, ledger)]
        for row in ledger["rows"]
    ]
    return ["stage", *map(_title, names), f"gain in {_title(ledger['headline'])} [95%]", "verdict"], rows


def slice_table(ledger: Mapping[str, Any]) -> Table:
    """Return (header, rows) of the headline metric by slice of requests."""
    names = [row["name"] for row in ledger["rows"]]
    rows = []
    for part in ledger["slices"]:
        values = [f"{part['rows'][name][ledger['headline']]:.4f}" if part["rows"] else "-" for name in names]
        rows.append([part["name"], f"{part['requests']:,}", f"{part['users']:,}", *values])
    return [f"{_title(ledger['headline'])} by slice", "requests", "users", *names], rows


def age_tables(ledger: Mapping[str, Any]) -> list[Table]:
    """Return (header, rows) by the age of the items looked for, of NDCG and recall; none for old ledgers."""
    k, names = ledger["config"]["ks"][0], [row["name"] for row in ledger["rows"]]
    parts = [part for part in ledger.get("item_ages", []) if part["targets"]]
    tables = []
    for metric in (f"ndcg@{k}", f"recall@{k}", f"recall@{ledger['config']['candidate_k']}") if parts else ():
        rows = [
            [
                part["name"],
                f"{part['targets']:,}",
                f"{part['target_share']:.1%}",
                *(f"{part['rows'][name][metric]:.4f}" for name in names),
            ]
            for part in parts
        ]
        tables.append(([f"{_title(metric)} by age of the target", "targets", "share", *names], rows))
    return tables


def verdict_text(row: Mapping[str, Any]) -> str:
    """Return a ledger row's verdict in words, such as ``loses to candidates``."""
    return _VERDICTS[row["verdict"]].format(row["against"]) if row["against"] else "baseline"


def interval_text(gain: Mapping[str, Any]) -> str:
    """Return a gain with its interval, such as ``-0.0146 [-0.0155, -0.0137]``."""
    return f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def served_notes(ledger: Mapping[str, Any]) -> list[str]:
    """Return the sentences that say which row a release answers with and what it bypasses; none for old ledgers."""
    served = ledger.get("served")
    if served is None:
        return []
    headline = ledger["headline"]
    return [
        f"Served: the row {served['row']}, {_title(headline)} {served['metrics'][headline]:.4f}.",
        *(f"Bypassed: {stage} ({reason})." for stage, reason in served["bypassed"].items()),
    ]


def notes(ledger: Mapping[str, Any]) -> list[str]:
    """Return the sentences that say how to read the tables."""
    counts, config, k = ledger["counts"], ledger["config"], ledger["config"]["ks"][0]
    return [
        *served_notes(ledger),
        f"{counts['requests']:,} held-out requests of {counts['users']:,} users with {counts['targets']:,} targets, "
        f"ranked over {counts['items']:,} items; nothing is sampled, an item not ranked counts as missed.",
        f"Left out: {counts['requests_without_targets']:,} requests without a target.",
        f"Gains are paired over requests; intervals by bootstrap over users ({config['bootstrap_samples']:,} samples, "
        f"seed {config['seed']}). A stage gains or loses only where the interval leaves zero out.",
        f"Popularity share@{k}: share of the answers among the {counts['head_items']:,} most popular items (1%); "
        f"of the targets it is {ledger['target_head_share']:.4f}. Trending forgets by half in "
        f"{config['half_life_days']:g} days.",
        *(f"Without a row: {name}, for {reason}." for name, reason in ledger.get("left_out", {}).items()),
    ]


def render_markdown(ledger: Mapping[str, Any]) -> str:
    """Return the ledger as a Markdown document."""
    blocks = [
        "# Stage ledger",
        _markdown(main_table(ledger)),
        *notes(ledger),
        "## Slices",
        _markdown(slice_table(ledger)),
        *map(_markdown, age_tables(ledger)),
    ]
    return "\n\n".join(blocks) + "\n"


def render_ledger(ledger: Mapping[str, Any]) -> str:
    """Return the ledger as aligned plain text for the terminal."""
    tables = [slice_table(ledger), *age_tables(ledger)]
    return "\n\n".join([_aligned(main_table(ledger)), "\n".join(notes(ledger)), *map(_aligned, tables)])


def write_html(ledger: Mapping[str, Any], path: Path) -> None:
    """Write the ledger as one HTML file without external resources."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    page = environment.from_string(_PAGE).render(
        stages=main_table(ledger),
        notes=notes(ledger),
        slices=[slice_table(ledger), *age_tables(ledger)],
        data_fingerprint=ledger["data_fingerprint"],
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _title(metric: str) -> str:
    name, _, k = metric.partition("@")
    words = {"ndcg": "NDCG", "mrr": "MRR"}.get(name, name.replace("_", " ").capitalize())
    return f"{words}@{k}"


def _gain(gain: Mapping[str, Any] | None) -> str:
    return interval_text(gain) if gain else "-"


def _verdict(row: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    """Return the verdict in words, marked where the row is served or its stage bypassed."""
    served = ledger.get("served") or {"row": None, "bypassed": {}}
    mark = ", served" if row["name"] == served["row"] else ", bypassed" if row["name"] in served["bypassed"] else ""
    return f"{verdict_text(row)}{mark}"


def _markdown(table: Table) -> str:
    return _table(table, "pipe")


def _aligned(table: Table) -> str:
    return _table(table, "simple")


def _table(table: Table, kind: str) -> str:
    header, rows = table
    alignment = ("left", *["right"] * (len(header) - 1))
    text: str = tabulate(rows, headers=header, tablefmt=kind, colalign=alignment, disable_numparse=True)
    return text
