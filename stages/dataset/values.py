"""Fit the value rules on the candidate period and apply them to all of ``events.parquet``.

Memory holds one row group at a time. A rule does not depend on later periods.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.files import atomic_file
from stages.contracts.tables import PART_CANDIDATE, row_groups
from stages.contracts.value_rules import FittedValueRule, draw_lots, fit_value_rule
from stages.dataset.config import DatasetStepConfig

_FITTED_ON = ["item_index", "signal", "value", "part", "active"]


def correct_values(config: DatasetStepConfig, path: Path, durations_s: np.ndarray) -> tuple[FittedValueRule, ...]:
    """Replace the values of the signals that have a rule.

    Args:
        config: the rules by signal; without a rule the file stays as it is.
        path: ``events.parquet``, rewritten as a whole or not at all.
        durations_s: float ``[N]``, NaN where unknown.

    Returns:
        The fitted rules, in the order of the signals' codes.

    Raises:
        DataError: if the candidate period has no event of a signal with a rule.
    """
    if not config.values:
        return ()
    ruled = [(code, signal) for code, signal in enumerate(config.signals) if signal in config.values]
    rules = tuple(
        fit_value_rule(signal, config.values[signal], _views(path, code, durations_s)) for code, signal in ruled
    )
    with atomic_file(path) as corrected, pq.ParquetFile(path) as file:
        _write_corrected(file, corrected, ruled, rules, durations_s)
    return rules


def _write_corrected(
    file: pq.ParquetFile,
    corrected: Path,
    ruled: list[tuple[int, str]],
    rules: tuple[FittedValueRule, ...],
    durations_s: np.ndarray,
) -> None:
    with pq.ParquetWriter(corrected, file.schema_arrow, compression="zstd") as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            signals, values = table["signal"].to_numpy(), table["value"].to_numpy().copy()
            item = table["item_index"].to_numpy()
            duration = durations_s[item].astype(np.float64)
            lots = draw_lots(item, table["event_time_ms"].to_numpy())
            for (code, _), rule in zip(ruled, rules, strict=True):
                rows = signals == code
                values[rows] = rule.apply(values[rows].astype(np.float64), duration[rows], lots[rows])
            place = table.schema.get_field_index("value")
            writer.write_table(table.set_column(place, table.schema.field(place), pa.array(values)))


def _views(path: Path, code: int, durations_s: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (values, durations) of the signal's events that training may read."""
    for columns in row_groups(path, _FITTED_ON):
        rows = (columns["signal"] == code) & (columns["part"] == PART_CANDIDATE) & columns["active"]
        yield columns["value"][rows].astype(np.float64), durations_s[columns["item_index"][rows]].astype(np.float64)
