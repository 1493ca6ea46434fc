from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.splitmix64 import GOLDEN, mix64

BITS = 1 << 64


def naive(value: int) -> int:
    """The reference code by S. Vigna (splitmix64.c), on Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % BITS
    return value ^ (value >> 31)


def test_the_published_sequence() -> None:
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN
    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(st.integers(0, BITS - 1), max_size=10))
def test_it_is_the_reference_and_leaves_its_input_alone(values: list[int]) -> None:
    states = np.array(values, dtype=np.uint64)
    found = mix64(states)
    assert found.dtype == np.uint64
    assert found.tolist() == [naive(value) for value in values]
    assert states.tolist() == values
