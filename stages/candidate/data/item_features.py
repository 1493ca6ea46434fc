"""What the towers know of items beside their ids, and how large their tables are.

Shapes: N items, M eligible items, U users, X context columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.candidate.data.words import hashed_words
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.snapshot import ItemTable
from stages.features.history import age_seconds

if TYPE_CHECKING:
    from stages.candidate.data.examples import Examples

_NONE = np.zeros(0, dtype=np.int64)
_NO_SCALE = np.array([0.0, np.inf])
_SAME_DURATION = 1e-6
"""Standard deviation of log durations below which they differ by rounding only."""


@dataclass(frozen=True)
class Catalogue:
    """What the towers know of items beside their ids, and which items a model may recommend.

    Attributes:
        offsets: int64 ``[N + 1]``.
        codes: int64, categories of item i are ``codes[offsets[i]:offsets[i + 1]]``.
        log_duration: float32 ``[N]``, standardised ``log1p`` of the seconds, 0 where unknown.
        frequency: int64 ``[N]``, examples whose target is the item.
        in_histories: bool ``[N]``, items in the history of at least one example.
        eligible: int64 ``[M]``, items created before the end of the candidate period that passed the item policy
            then. A model of that time would choose from them, so the negatives are drawn from them.
        word_offsets: int64 ``[N + 1]``; word_codes: int64, hashed words of the titles, stored like categories.
        created_at_ms: int64 ``[N]``.
        end_ms: end of the candidate period; exported item vectors use the ages at this time.
        n_signals: kinds of events.
        trained_users: bool ``[U]``, users with examples.
        context_sizes: int64 ``[X]``, values of each context column.
        trained_contexts: bool ``[V]``, values that examples have; V values of all columns, one column after another.
        categories: number of the snapshot's categories, with those of items that are retired.
        duration_scale: float64 ``[2]``, mean and standard deviation that ``log_duration`` is standardised by. The
            deviation is infinite where durations do not differ, so that a new item's duration has no effect either.
    """

    offsets: np.ndarray
    codes: np.ndarray
    log_duration: np.ndarray
    frequency: np.ndarray
    in_histories: np.ndarray
    eligible: np.ndarray
    word_offsets: np.ndarray = None  # type: ignore[assignment]  # filled by __post_init__
    word_codes: np.ndarray = None  # type: ignore[assignment]
    created_at_ms: np.ndarray = None  # type: ignore[assignment]
    end_ms: int = 0
    n_signals: int = 1
    trained_users: np.ndarray = None  # type: ignore[assignment]
    context_sizes: np.ndarray = None  # type: ignore[assignment]
    duration_scale: np.ndarray = None  # type: ignore[assignment]
    trained_contexts: np.ndarray = None  # type: ignore[assignment]
    categories: int = 0

    def __post_init__(self) -> None:
        defaults = {
            "word_offsets": np.zeros(len(self) + 1, dtype=np.int64),
            "word_codes": _NONE,
            "created_at_ms": np.zeros(len(self), dtype=np.int64),
            "trained_users": np.zeros(0, dtype=bool),
            "context_sizes": _NONE,
            "duration_scale": _NO_SCALE,
            "trained_contexts": np.zeros(0, dtype=bool),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        items: ItemTable,
        examples: Examples,
        rows: np.ndarray,
        length: int,
        end_ms: int,
        *,
        of_others: bool = False,
        word_buckets: int = 0,
        n_signals: int = 1,
        n_users: int = 0,
        context_sizes: Sequence[int] = (),
    ) -> Catalogue:
        """Describe a snapshot's items.

        Args:
            items: the canonical items, N.
            examples: of the candidate period.
            rows: int64, the examples to train on.
            length: L, items read of a history.
            end_ms: end of the candidate period.
            of_others: whether histories hold a user's other touches, or those before the example only.
            word_buckets: rows that the words of titles are hashed to; 0 leaves titles out.
            n_signals: kinds of events.
            n_users: U.
            context_sizes: values of each context column.
        """
        frequency = np.bincount(examples.items[rows], minlength=len(items)).astype(np.int64)
        in_histories = np.zeros(len(items), dtype=bool)
        in_histories[examples.items[examples.read_by_others(length, of_others)]] = True
        trained_users = np.zeros(n_users, dtype=bool)
        if n_users:
            trained_users[examples.users[rows]] = True
        sizes_X = np.array(context_sizes, dtype=np.int64)
        word_offsets, word_codes = hashed_words(items.title, word_buckets)
        scale = _log_scale(items.duration_s)
        return cls(
            offsets=items.category_offsets,
            codes=items.category_codes.astype(np.int64),
            log_duration=standardised_log(items.duration_s, scale),
            frequency=frequency,
            in_histories=in_histories,
            eligible=np.flatnonzero(((items.created_at_ms < end_ms) & (items.eligible & 1 == 1)) | (frequency > 0)),
            word_offsets=word_offsets,
            word_codes=word_codes,
            created_at_ms=items.created_at_ms,
            end_ms=end_ms,
            n_signals=n_signals,
            trained_users=trained_users,
            context_sizes=sizes_X,
            duration_scale=scale,
            trained_contexts=_trained_contexts(examples, rows, sizes_X),
            categories=items.n_categories,
        )

    def __len__(self) -> int:
        return len(self.log_duration)

    def ages(self, items: np.ndarray, at_ms: np.ndarray | int) -> np.ndarray:
        """Return int64 whole seconds since the items' creation at the given times; 0 for an item created later."""
        return age_seconds(self.created_at_ms[items], at_ms)

    def save(self, directory: Path) -> None:
        """Write one ``catalogue_<column>.npy`` a column."""
        for field in fields(self):
            np.save(directory / f"catalogue_{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> Catalogue:
        """Read the columns."""
        columns = {
            field.name: np.load(directory / f"catalogue_{field.name}.npy", allow_pickle=False) for field in fields(cls)
        }
        return cls(**{name: value if value.ndim else value.item() for name, value in columns.items()})

    def named_in_histories(self, shared_table: bool) -> np.ndarray:
        """Return bool ``[N]``: items whose ids mean something in a history; the others are known by their content.

        Args:
            shared_table: whether histories and candidates have one item table, so that targets are known as well.
        """
        named: np.ndarray = self.in_histories | ((self.frequency > 0) & shared_table)
        return named

    @cached_property
    def _one_category_each(self) -> bool:
        return bool((np.diff(self.offsets) == 1).all())

    @property
    def n_categories(self) -> int:
        """Return the rows of the category table; it has at least one."""
        return max(self.categories, int(self.codes.max(initial=0)) + 1)

    def category_bags(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the categories of items.

        Args:
            items: int64 ``[n]``.

        Returns:
            codes int64 ``[m]``, and how many each item has, int64 ``[n]``.
        """
        if self._one_category_each:
            return self.codes[items], np.ones(len(items), dtype=np.int64)
        return _bags(self.offsets, self.codes, items)

    def word_bags(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the words of items' titles; as ``category_bags``."""
        return _bags(self.word_offsets, self.word_codes, items)


def _trained_contexts(examples: Examples, rows: np.ndarray, sizes_X: np.ndarray) -> np.ndarray:
    """Return bool ``[V]``: the context values that the examples in ``rows`` have."""
    trained = np.zeros(int(sizes_X.sum()), dtype=bool)
    if len(sizes_X):
        codes_MX = examples.moments[np.unique(examples.contexts[rows])].astype(np.int64)
        trained[(codes_MX - 1 + row_offsets(sizes_X)[:-1])[codes_MX > 0]] = True
    return trained


def _bags(offsets: np.ndarray, codes: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = offsets[items]
    counts = offsets[items + 1] - starts
    return codes[ranges(starts, counts)], counts


def standardised_log(duration_s: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return float32 ``[N]``: ``log1p`` of the seconds by ``Catalogue.duration_scale``, 0 where unknown."""
    known = _is_known(duration_s)
    logs = np.log1p(np.where(known, duration_s, 0.0).astype(np.float64))
    scaled: np.ndarray = np.where(known, (logs - scale[0]) / scale[1], 0.0).astype(np.float32)
    return scaled


def _log_scale(duration_s: np.ndarray) -> np.ndarray:
    logs = np.log1p(duration_s[_is_known(duration_s)].astype(np.float64))
    if not len(logs) or logs.std() < _SAME_DURATION:
        return _NO_SCALE
    return np.array([logs.mean(), logs.std()])


def _is_known(duration_s: np.ndarray) -> np.ndarray:
    known: np.ndarray = np.isfinite(duration_s) & (duration_s >= 0)
    return known
