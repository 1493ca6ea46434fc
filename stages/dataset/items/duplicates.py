"""Find duplicate items: by title, by text, by vectors, and by verdict."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.dataset.items.clusters import Clusters
from stages.dataset.items.minhash import jaccard, numbers, shingles, similar_pairs
from stages.dataset.items_config import DuplicatesConfig

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


@dataclass(frozen=True)
class Items:
    """The compared fields, row by row.

    Attributes:
        item_ids: N, any order.
        titles: N titles, possibly empty.
        categories: N sets of category names.
        created_at_ms: N times, int ms UTC or None.
        texts: N texts, or an empty sequence.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    categories: Sequence[frozenset[str]]
    created_at_ms: Sequence[int | None]
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """Groups of duplicate items.

    Attributes:
        aliases: canonical id by duplicate id; a canonical id is never a key.
        exact: number of duplicates with the same title as their canonical item.
        near_pairs: (row, row, similarity) of the pairs that were compared, best first.
        head: canonical row of each row.
    """

    aliases: dict[str, str]
    exact: int
    near_pairs: list[tuple[int, int, float]] = field(default_factory=list)
    head: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """Known facts about pairs of rows: verdicts ``same`` and ``different``, and similarities of vectors."""

    same: Sequence[tuple[int, int]] = ()
    different: Sequence[tuple[int, int]] = ()
    similarity: dict[tuple[int, int], float] = field(default_factory=dict)


def find_duplicates(items: Items, config: DuplicatesConfig, known: Known | None = None) -> Found:
    """Group the duplicate items.

    Items with equal titles (normalised, not empty) are joined first, then similar pairs, the most similar
    first. Items with different numbers in their titles (Part 2, Part 3) or contradicting categories are not
    joined; verdicts take precedence. The canonical item of a group is the one created first, then the one
    with the lowest id; an unknown creation time counts as late. The result depends on the catalogue only,
    never on events.

    Raises:
        ConfigError: if verdicts contradict.
    """
    known = known or Known()
    titles = [normalise_title(title) for title in items.titles]
    rank = [
        (_NO_DATE if at is None else at, item_id)
        for at, item_id in zip(items.created_at_ms, items.item_ids, strict=True)
    ]
    texts = _Texts(items, titles, config, known)
    clusters = Clusters(rank, items.categories, texts.alike, known.same, known.different, items.item_ids)
    if config.method != "none":
        _join_equal(clusters, titles, rank)
    exact = sum(head != row and titles[head] == titles[row] for row, head in enumerate(clusters.head))
    pairs = texts.pairs()
    for a, b, similarity in pairs:
        if similarity >= config.threshold:
            clusters.join(a, b)
    aliases = {items.item_ids[row]: items.item_ids[head] for row, head in enumerate(clusters.head) if head != row}
    return Found(aliases, exact, pairs, clusters.head)


def _join_equal(clusters: Clusters, titles: Sequence[str], rank: Sequence[tuple]) -> None:
    """Let each row join the first earlier group with its title that accepts it."""
    same_title: dict[str, list[int]] = defaultdict(list)
    for row, title in enumerate(titles):
        if title:
            same_title[title].append(row)
    for rows in same_title.values():
        if len(rows) > 1:
            heads: list[int] = []
            for row in sorted(rows, key=rank.__getitem__):
                if not any(clusters.join(head, row) for head in heads):
                    heads.append(row)


class _Texts:
    """Compares rows by title, text and given similarities."""

    def __init__(self, items: Items, titles: list[str], config: DuplicatesConfig, known: Known) -> None:
        self._titles, self._config, self._known = titles, config, known
        self._documents = titles
        if config.method == "near" and "text" in config.fields and any(items.texts):
            texts = [normalise_title(text) for text in items.texts]
            parts = {"title": titles, "text": texts}
            columns = [parts[name] for name in config.fields]
            self._documents = [" ".join(words).strip() for words in zip(*columns, strict=True)]

    def alike(self, a: int, b: int) -> bool:
        """Return whether two rows are similar by themselves, without regard to groups."""
        if self._titles[a] and self._titles[a] == self._titles[b]:
            return True
        if numbers(self._titles[a]) != numbers(self._titles[b]):
            return False
        threshold, kind = self._config.threshold, self._config.shingles
        if self._known.similarity.get((min(a, b), max(a, b)), 0.0) >= threshold:
            return True
        if self._config.method != "near":
            return False
        return jaccard(shingles(self._documents[a], kind), shingles(self._documents[b], kind)) >= threshold

    def pairs(self) -> list[tuple[int, int, float]]:
        """Return the pairs down to the review band, each once, best first, then by row."""
        best = {
            pair: value
            for pair, value in self._known.similarity.items()
            if numbers(self._titles[pair[0]]) == numbers(self._titles[pair[1]])
        }
        if self._config.method == "near":
            for a, b, value in self._near():
                best[a, b] = max(value, best.get((a, b), 0.0))
        return sorted(((a, b, value) for (a, b), value in best.items()), key=lambda pair: (-pair[2], pair[:2]))

    def _near(self) -> list[tuple[int, int, float]]:
        """Compare each distinct document once, and use the result for all of its rows."""
        rows: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
        for row, (document, title) in enumerate(zip(self._documents, self._titles, strict=True)):
            if document:
                rows[document, numbers(title)].append(row)
        floor = max(0.0, self._config.threshold - self._config.review_band)
        distinct, groups = list(rows), list(rows.values())
        first, second, similarity = similar_pairs(
            [document for document, _ in distinct], [key for _, key in distinct],
            self._config.threshold, floor, self._config.shingles,
        )  # fmt: skip
        order = np.lexsort((second, first))
        return [
            (min(a, b), max(a, b), value)
            for one, other, value in zip(
                first[order].tolist(), second[order].tolist(), similarity[order].tolist(), strict=True
            )
            for a in groups[one]
            for b in groups[other]
        ]
