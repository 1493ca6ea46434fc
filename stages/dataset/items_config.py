"""Configuration of duplicate items and of blocked items."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from stages.contracts.config import Config

Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class DuplicatesConfig(Config):
    """How duplicate items are found.

    Attributes:
        method: ``none``; ``exact``: equal normalised titles; ``near``: similar titles and texts as well.
        threshold: smallest Jaccard similarity of near-duplicates.
        fields: compared fields of an item, joined in this order; a missing text is empty.
        shingles: ``words``, or ``characters`` (all four-character substrings).
        review_band: pairs within this distance from the threshold are written out for review.
        max_review: largest number of pairs for review, the closest to the threshold.
        pairs: Parquet or CSV of item_a, item_b, similarity (see ``sluice dataset pairs``), or None. The
            same threshold applies to these pairs, in addition to the comparison of titles.
        verdicts: Parquet or CSV of item_a, item_b, verdict (``same`` or ``different``), or None.
        files_sha256: hashes of ``pairs`` and ``verdicts``, filled in when a run resolves its recipe.
    """

    method: Literal["none", "exact", "near"] = "exact"
    threshold: float = Field(default=0.75, ge=0.3, le=1)
    fields: tuple[Literal["title", "text"], ...] = Field(default=("title", "text"), min_length=1)
    shingles: Literal["words", "characters"] = "words"
    review_band: float = Field(default=0.1, ge=0, le=0.5)
    max_review: int = Field(default=10_000, ge=0)
    pairs: str | None = None
    verdicts: str | None = None
    files_sha256: dict[str, str] = {}


class ContentConfig(Config):
    """Which items are blocked: no training, no index, no recommendation. Each reason has a name of its own.

    Attributes:
        predicates: SQL over the table ``items`` by reason, executed by the warehouse as it is written.
        lists: path by reason: a text file with one id a line, or a CSV or Parquet with ``item_id``.
        classifiers: ``package.module:function`` by reason; it takes a ``pyarrow.Table`` with the columns
            of ``stages.warehouse.selection.items.ITEMS_SCHEMA`` and returns one boolean for each row.
        files_sha256: hashes of ``lists``, filled in when a run resolves its recipe.
    """

    predicates: dict[Reason, Annotated[str, StringConstraints(min_length=1)]] = {}
    lists: dict[Reason, str] = {}
    classifiers: dict[Reason, Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]] = {}
    files_sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _reasons_are_different(self) -> ContentConfig:
        names = [*self.predicates, *self.lists, *self.classifiers]
        if len(set(names)) < len(names) or "duplicate_of_blocked" in names:
            raise ValueError(
                f"content has the reasons {sorted(names)}; each must be given once, and duplicate_of_blocked is taken"
            )
        return self
