"""Where the heavy part of making an index runs: the CPU, or one GPU where Faiss was built for it.

Shapes: B queries, D dimensions, K neighbours, N vectors.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np

from stages.contracts.errors import ConfigError


class IndexDevice:
    """Exact search and the comparison with cluster centres, on the chosen device.

    Args:
        wanted: ``auto`` takes the first GPU that Faiss sees, else the CPU.

    Raises:
        ConfigError: if ``cuda`` is wanted and Faiss sees no GPU.
    """

    def __init__(self, wanted: Literal["auto", "cpu", "cuda"]) -> None:
        found = 0 if wanted == "cpu" else faiss.get_num_gpus()
        if wanted == "cuda" and not found:
            raise ConfigError(
                "index.device = 'cuda': Faiss sees no GPU (is a package with CUDA such as faiss-gpu installed?); "
                "allowed are 'auto' and 'cpu' here"
            )
        self.name = "cuda" if found else "cpu"
        self._resources: Any = faiss.StandardGpuResources() if found else None

    def flat(self, dim: int) -> Any:
        """Return an empty index for exact inner products."""
        index = faiss.IndexFlatIP(dim)
        return index if self._resources is None else faiss.index_cpu_to_gpu(self._resources, 0, index)

    def nearest(self, queries_BD: np.ndarray, vectors_ND: np.ndarray, k: int) -> np.ndarray:
        """Return int64 ``[B, K]``: the rows of the ``k`` largest inner products, best first."""
        metric = faiss.METRIC_INNER_PRODUCT
        if self._resources is None:
            rows_BK: np.ndarray = faiss.knn(queries_BD, vectors_ND, k, metric=metric)[1]
        else:
            rows_BK = faiss.knn_gpu(self._resources, queries_BD, vectors_ND, k, metric=metric)[1]
        return rows_BK
