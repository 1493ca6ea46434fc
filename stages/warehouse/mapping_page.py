"""Write the page ``docs/mapping.md`` from the mapping's models, so that it has every key and its values.

python -m stages.warehouse.mapping_page > docs/mapping.md
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns, UserColumns

EXAMPLE = """\
mapping: {table: interactions, user_id: visitor, item_id: article, event_time: at, time_unit: iso, signal: click}
"""
RECIPE = """\
dataset:
  signals: [click]
  activity: {min_events: 5}
  tasks: [{name: click, signals: [click], relevance: 1.0}]
funnel: {objective: {click: 1.0}}
"""
_HEAD = f"""\
# Column mappings

A mapping tells which column of a file means what. This page is made of the code
(`stages.warehouse.mapping_page`), and a test holds it to it: every key is here.

## A CSV of your own

`clicks.csv`:

```
visitor,article,at
anna,a17,2024-05-01T08:00:00Z
```

`mapping.yaml`:

```yaml
{EXAMPLE}```

`recipe.yaml`; everything else has a default:

```yaml
{RECIPE}```

```
sluice run --data clicks.csv --mapping mapping.yaml --config recipe.yaml
```

Several files, such as events and a catalogue, make one source with a name. `--data` is then the
folder that `path` is below:

```yaml
name: shop
files:
  - {{path: items.csv, mapping: {{table: items, item_id: id, title: name, categories: kinds, category_separator: ";"}}}}
  - path: events-*.tsv.gz
    delimiter: "\\t"
    quote: null
    column_names: [visitor, article, seconds]
    mapping: {{table: interactions, user_id: visitor, item_id: article, event_time: seconds, time_unit: s}}
```

## Times

| `time_unit` | a value such as |
|---|---|
| `s` (the default) | `1714550400` |
| `ms` | `1714550400000` |
| `us` | `1714550400000000` |
| `ns` | `1714550400000000000` |
| `days` | `19844` |
| `iso` | `2024-05-01T08:00:00Z`, `2024-05-01 08:00:00`, `2024-05-01` |
| a strptime format, `"%d/%m/%Y %H:%M"` | `01/05/2024 08:00` |

A Parquet timestamp or date column needs no unit. Every ingest prints from when to when its events are, and
refuses a span that cannot be ([sources](sources.md)).
"""
_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("A source (`name` and `files`)", IngestSource),
    ("A file", FileSource),
    ("`mapping` of a file of events (`table: interactions`)", InteractionColumns),
    ("`mapping` of a file of items (`table: items`)", ItemColumns),
    ("`mapping` of a file of users (`table: users`)", UserColumns),
)
_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<words>.*(?:\n(?:     .*|$))*)", re.MULTILINE)


def mapping_page() -> str:
    """Return the page in Markdown."""
    return _HEAD + "".join(f"\n## {title}\n\n{_table(model)}" for title, model in _SECTIONS)


def _table(model: type[BaseModel]) -> str:
    words = described(model)
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(name, field)} | {words[name]} |" for name, field in _fields(model)
    ]
    return "\n".join(["| key | takes | default | what it says |", "|---|---|---|---|", *rows, ""])


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Return the keys in the order of the model: the model's own keys, then its base's."""
    own = list(model.__annotations__)
    return sorted(model.model_fields.items(), key=lambda pair: own.index(pair[0]) if pair[0] in own else len(own))


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return each key's description, in one line, from the docstrings of a model and its bases."""
    found = {"table": "which table the file fills"}
    for kind in reversed(model.__mro__):
        text = inspect.cleandoc(kind.__doc__ or "") if issubclass(kind, BaseModel) else ""
        _, _, attributes = text.partition("Attributes:\n")
        for entry in _ENTRY.finditer(attributes):
            line = " ".join(entry["words"].split()).replace("``", "`").replace("|", "\\|")
            found |= dict.fromkeys(entry["names"].split(", "), line)
    return found


def _kind(field: FieldInfo) -> str:
    words = _in_words(field.annotation)
    return words.replace("|", "\\|")


def _in_words(annotation: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    if annotation in names:
        return names[annotation]
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    origin = getattr(annotation, "__origin__", None)
    if origin is tuple:
        return f"a list of {_in_words(arguments[0])}"
    if origin is dict:
        return f"a mapping of {_in_words(arguments[0])} to {_in_words(arguments[1])}"
    if arguments:
        kinds = [argument for argument in arguments if not isinstance(argument, FieldInfo)]
        return " or ".join(dict.fromkeys(_in_words(kind) for kind in kinds))
    return {"Path": "a path", "FileSource": "files, see below"}.get(annotation.__name__, "a mapping, see below")


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required() or name == "table":  # the table tells which of the three mappings it is
        return "**required**"
    value = field.default
    if value is None or value in ((), {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(mapping_page())
