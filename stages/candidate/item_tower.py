"""The item tower as one portable file: it embeds items that were born after the training.

What an item is known by beside its id goes through ``item_tower.onnx`` as in training; an item without a
row of its own in the trained table has a zero id embedding, like the items whose ids were hidden there.

Shapes: B items, C categories, D dimensions, K content dimensions, M categories an item at most, N items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from stages.contracts.errors import ReleaseError
from stages.contracts.snapshot import ItemTable

ITEM_TOWER_FILE = "item_tower.onnx"
INPUTS = ["item_rows", "category_codes", "duration_s"]
_BLOCK = 1 << 14


class PortableItemTower:
    """The exported item tower on ONNX Runtime.

    Attributes:
        n_rows: items that have an id embedding; later ones are embedded without.
        n_categories: categories that were trained; an item's later ones say nothing.

    Raises:
        ReleaseError: if the file is missing, or not such a tower.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime.disable_telemetry_events()
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a class of its own for each kind of fault
            raise ReleaseError(f"{path} is not a loadable ONNX model: {error}") from None
        names = [entry.name for entry in self._session.get_inputs()]
        if names != INPUTS:
            raise ReleaseError(f"{path}: inputs {names}, expected {INPUTS}")
        sizes = self._session.get_modelmeta().custom_metadata_map
        self.n_rows, self.n_categories = int(sizes["n_rows"]), int(sizes["n_categories"])

    def embed(self, items: ItemTable) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors float32 ``[N, D]`` of all items, and their content ``[N, K]``.

        Args:
            items: row = item index; the first ``n_rows`` are those of the training.
        """
        parts = [self._embed(items, start, min(start + _BLOCK, len(items))) for start in range(0, len(items), _BLOCK)]
        return np.concatenate([vectors for vectors, _ in parts]), np.concatenate([content for _, content in parts])

    def _embed(self, items: ItemTable, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows_B = np.minimum(np.arange(start, stop), self.n_rows)
        values = {
            "item_rows": rows_B,
            "category_codes": padded_codes(items, start, stop, self.n_categories),
            "duration_s": items.duration_s[start:stop].astype(np.float32),
        }
        vectors_BD, content_BK = self._session.run(["vector", "content"], values)
        return vectors_BD, content_BK


def padded_codes(items: ItemTable, start: int, stop: int, n_categories: int) -> np.ndarray:
    """Return int64 ``[B, M]`` categories of items ``start`` to ``stop``, ``n_categories`` where there is none."""
    counts_B = np.diff(items.category_offsets[start : stop + 1])
    codes_BM = np.full((stop - start, max(1, int(counts_B.max(initial=0)))), n_categories, dtype=np.int64)
    own = items.category_codes[items.category_offsets[start] : items.category_offsets[stop]]
    codes_BM[np.arange(codes_BM.shape[1]) < counts_B[:, None]] = np.minimum(own, n_categories)
    return codes_BM
