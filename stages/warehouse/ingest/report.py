"""Counts of what an ingestion read, loaded and quarantined."""

from __future__ import annotations

from collections.abc import Iterable

from stages.contracts.config import Config


class FileReport(Config):
    """One file; ``rows_read = rows_loaded + rows_duplicate + rows_quarantined``.

    Attributes:
        file: its path, or a name for rows from memory.
        table: the table that it fills.
        batch_id: hex sha256 over its bytes, its table and its mapping.
        rows_read: rows, without the header and blank lines.
        rows_loaded: rows that were added, or that changed an item or a user.
        rows_duplicate: rows that were there already.
        rows_quarantined: rows with a fault; each is stored once in ``quarantine``.
        reasons: number of rows with a fault, by reason.
        rows_replaced: events of the file's earlier load, with other content or another mapping; each was
            loaded again or removed.
        rows_removed: of these, the events that neither this file nor another one contains now.
        known: whether the file was loaded in full before and was not read again.
    """

    file: str
    table: str
    batch_id: str
    rows_read: int = 0
    rows_loaded: int = 0
    rows_duplicate: int = 0
    rows_quarantined: int = 0
    reasons: dict[str, int] = {}
    rows_replaced: int = 0
    rows_removed: int = 0
    known: bool = False


class IngestReport(Config):
    """All files of a data source, in the order of loading."""

    files: tuple[FileReport, ...]

    @property
    def rows_read(self) -> int:
        """Rows read from all files."""
        return sum(file.rows_read for file in self.files)

    @property
    def rows_loaded(self) -> int:
        """Rows added or changed."""
        return sum(file.rows_loaded for file in self.files)

    @property
    def rows_duplicate(self) -> int:
        """Rows that were there already."""
        return sum(file.rows_duplicate for file in self.files)

    @property
    def rows_quarantined(self) -> int:
        """Rows quarantined."""
        return sum(file.rows_quarantined for file in self.files)

    @property
    def rows_replaced(self) -> int:
        """Events of the files' earlier loads, with other content or another mapping."""
        return sum(file.rows_replaced for file in self.files)

    @property
    def reasons(self) -> dict[str, int]:
        """Rows quarantined by reason."""
        return _total(file.reasons for file in self.files)

    @property
    def tables(self) -> dict[str, dict[str, int]]:
        """``rows_read``, ``rows_loaded``, ``rows_duplicate`` and ``rows_quarantined`` by table."""
        names = ("rows_read", "rows_loaded", "rows_duplicate", "rows_quarantined")
        return {
            table: _total({name: getattr(file, name) for name in names} for file in self.files if file.table == table)
            for table in dict.fromkeys(file.table for file in self.files)
        }


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total
