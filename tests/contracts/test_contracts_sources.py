"""What candidate generators say of candidates: the table of names, checks, the mask, and the file."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.sources import GENERATORS, LAST_CODE, SourceScores, source_code, source_name

NAMES = ("tower", "trending", "content")


def scores_of(*ranks: tuple[int, ...]) -> SourceScores:
    table = np.array(ranks, dtype=np.int32).reshape(-1, len(NAMES))
    return SourceScores(NAMES, np.where(table < 0, np.nan, 10.0 - table).astype(np.float32), table)


def test_codes_never_change():
    """Files of finished steps hold them."""
    known = ("tower", "popular", "covisitation", "trending", "ease", "ials", "content", "directed_ridge", "item_knn")
    windows = ("10m", "1h", "6h", "1d", "7d")
    known += tuple(f"{kind}_{window}" for kind in ("trending", "segment_trending") for window in windows)
    assert [source_code(name) for name in known] == list(range(19))
    assert [source_name(code) for code in range(19)] == list(known)
    assert (source_code("tower"), source_code("popular")) == (SOURCE_TOWER, SOURCE_POPULAR)


def test_each_code_is_that_of_one_name_and_fits_the_mask():
    codes = [row.code for row in GENERATORS.values()]
    assert len(set(codes)) == len(codes)
    assert min(codes) >= 0 and max(codes) <= LAST_CODE == 30, "a bit of an int32"


def test_the_mask_has_a_bit_a_source():
    assert scores_of((0, -1, -1), (-1, -1, -1), (2, 0, 5)).mask().tolist() == [1 << 0, 0, 1 << 0 | 1 << 3 | 1 << 6]


@settings(deadline=None)  # writes a file
@given(st.lists(st.tuples(*[st.integers(-1, 5)] * 3), max_size=8))
def test_the_file_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("sources") / "source_scores.parquet"
    written = scores_of(*rows)
    pq.write_table(written.table(), path)
    read = SourceScores.read(path, NAMES)
    np.testing.assert_array_equal(read.scores, written.scores)
    np.testing.assert_array_equal(read.ranks, written.ranks)
    assert pq.read_table(path)["sources"].to_pylist() == written.mask().tolist()


def test_rows_of_no_source_join_the_others():
    joined = SourceScores.concatenate([scores_of((1, 0, -1)), SourceScores.nothing(NAMES, 2)])
    assert joined.mask().tolist() == [1 | 1 << 3, 0, 0]
    assert len(joined.take(slice(1, 3))) == 2


def test_malformed_tables_are_refused(tmp_path):
    ranks = np.array([[0, -1, 2]], dtype=np.int32)
    with pytest.raises(DataError, match=r"scores must be float32 \[1, 3\], found float32 \[1, 2\]"):
        SourceScores(NAMES, np.zeros((1, 2), np.float32), ranks)
    with pytest.raises(DataError, match=r"scores must be float32 \[1, 3\], found float64"):
        SourceScores(NAMES, np.zeros((1, 3)), ranks)
    with pytest.raises(DataError, match="a score exactly where it has a rank"):
        SourceScores(NAMES, np.zeros((1, 3), np.float32), ranks)
    path = tmp_path / "source_scores.parquet"
    pq.write_table(scores_of((0, 1, 2)).table(), path)
    with pytest.raises(DataError, match=r"holds the sources \['tower', 'trending', 'content'\], expected \['tower'\]"):
        SourceScores.read(path, ["tower"])
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        SourceScores.read(path, NAMES)
