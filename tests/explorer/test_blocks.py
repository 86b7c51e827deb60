"""Blocks: the rows of a neuron are its own, whether they were read for it or for a neighbour."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from explorer.blocks import Blocks, width


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(0, 20), st.sampled_from([1, 4, 16]))
def test_a_neuron_has_its_rows_and_no_other(neurons, wanted, wide):
    table = pl.DataFrame({"neuron": neurons, "row": range(len(neurons))}, schema={"neuron": pl.Int32, "row": pl.Int64})
    blocks = Blocks()
    for neuron in (*range(21), wanted):
        found = blocks.rows("a", neuron, wide, lambda near: table.filter(pl.col("neuron").is_in(list(near))))
        assert found.equals(table.filter(pl.col("neuron") == neuron))


def test_neighbours_are_read_once_and_what_was_not_asked_for_longest_goes():
    asked = []

    def read(near):
        asked.append(near.start)
        return pl.DataFrame({"neuron": list(near)}, schema={"neuron": pl.Int32})

    blocks = Blocks(most=40)  # a block of four is 16 bytes
    for neuron in (0, 3, 5, 1, 9, 0, 6):
        blocks.rows("a", neuron, 4, read)
    assert asked == [0, 4, 8, 4]
    blocks.rows("b", 0, 4, read)
    assert asked == [0, 4, 8, 4, 0]


def test_a_block_is_narrower_where_neurons_have_more_rows():
    assert width(0, 0) == width(6_400, 6_400) == 512
    assert width(6_400 * 100, 6_400) == 64
    assert width(6_400 * 10_000, 6_400) == 1
