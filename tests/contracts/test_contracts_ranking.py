from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.ranking import ranked_table
from stages.contracts.tables import ScoredItems

ANSWERS = st.lists(st.lists(st.integers(0, 20), unique=True, max_size=5), max_size=6)


@given(ANSWERS, st.integers(1, 9))
def test_answers_become_rows_in_their_order(answers: list[list[int]], step: int) -> None:
    request_ids = [number * step for number in range(len(answers))]
    scored = [
        ScoredItems(np.array(items, dtype=np.int64), -np.arange(len(items), dtype=np.float32)) for items in answers
    ]
    table = ranked_table(request_ids, scored)
    rows = zip(table.request_id.tolist(), table.item_index.tolist(), table.rank.tolist(), strict=True)
    wanted = [
        (number, item, rank)
        for number, items in zip(request_ids, answers, strict=True)
        for rank, item in enumerate(items)
    ]
    assert list(rows) == wanted
    assert table.score.tolist() == [-rank for _, _, rank in wanted]
