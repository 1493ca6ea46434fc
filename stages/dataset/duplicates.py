"""Items that are the same thing under another id: equal titles after normalisation."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

_ASCII_SEPARATORS = {
    code: " " for code in range(128) if unicodedata.category(chr(code))[0] in "PZC"
}  # punctuation, space, control; symbols such as "+" carry meaning ("C++") and stay
_NO_DATE = 1 << 62


def normalise_title(title: str) -> str:
    """Return ``title`` without differences of case, accents, punctuation, width and white space.

    Accents are dropped from Latin and Greek letters only: in other scripts a combining mark is
    part of the letter (the vowels of Devanagari, the voicing of kana).
    """
    if title.isascii():
        return " ".join(title.lower().translate(_ASCII_SEPARATORS).split())
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", title).casefold())
    kept, strips_marks = [], False
    for char in folded:
        kind = unicodedata.category(char)[0]
        if kind == "M":
            if not strips_marks:
                kept.append(char)
            continue
        strips_marks = unicodedata.name(char, "").startswith(("LATIN", "GREEK"))
        kept.append(" " if kind in "PZC" else char)
    return " ".join(unicodedata.normalize("NFKC", "".join(kept)).split())


def find_duplicates(
    item_ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[frozenset[str]],
    created_at_ms: Sequence[int | None],
) -> dict[str, str]:
    """Map the id of each exact duplicate to the item that stands for it.

    Two items are duplicates if their normalised titles are equal and not empty and their categories
    do not contradict: they share one, or one of the two has none. The one created first stands for
    the others, then the lowest id; an unknown creation time counts as late. The answer depends on
    the catalogue only, never on events.

    Args:
        item_ids: of the N items, any order.
        titles: N titles, possibly empty.
        categories: N sets of category names.
        created_at_ms: N times, int ms UTC or None.

    Returns:
        ``{duplicate id: canonical id}``; a canonical id is never a key.
    """
    same_title: dict[str, list[int]] = defaultdict(list)
    for row, title in enumerate(titles):
        if title and (key := normalise_title(title)):
            same_title[key].append(row)
    aliases: dict[str, str] = {}
    for rows in same_title.values():
        if len(rows) > 1:
            rows.sort(key=lambda row: (_NO_DATE if (at := created_at_ms[row]) is None else at, item_ids[row]))
            aliases.update(_group(rows, item_ids, categories))
    return aliases


def _group(rows: list[int], item_ids: Sequence[str], categories: Sequence[frozenset[str]]) -> dict[str, str]:
    """Let each row join the first earlier group that its categories do not contradict."""
    aliases: dict[str, str] = {}
    groups: list[tuple[str, set[str]]] = []
    for row in rows:
        own = categories[row]
        for canonical, known in groups:
            if not own or not known or own & known:
                aliases[item_ids[row]] = canonical
                known.update(own)
                break
        else:
            groups.append((item_ids[row], set(own)))
    return aliases
