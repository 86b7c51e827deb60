"""Pieces: a layer cut into neighbouring neurons, so that only what is asked about some of them is in memory at a time.

What is asked, answered and read lives as Python objects, which take ten times the room of the same in a table. A neuron
comes out the same whatever others are in its piece.
"""

from collections.abc import Iterator, Mapping

import polars as pl

NEURONS = 512
"""In a piece. A run over a network waits once for the last answers of each."""
IN_A_BATCH = 4_096
"""In a piece that goes to a provider as a batch, which may take a day: 11 requests for each are as much as one file holds."""


def pieces(
    rows: pl.DataFrame, tables: Mapping[str, pl.DataFrame], *, batch: bool = False
) -> Iterator[tuple[pl.DataFrame, dict[str, pl.DataFrame]]]:
    """The neurons of `rows` piece by piece, with what `tables` have of them; tables without neurons come whole.

    There is always one piece, if only an empty one.
    """
    neurons = rows.get_column("neuron").unique().sort()
    most = IN_A_BATCH if batch else NEURONS
    for first in range(0, max(1, len(neurons)), most):
        some = neurons.slice(first, most)
        inside = pl.col("neuron").is_between(some.min(), some.max()) if len(some) else pl.lit(value=False)
        yield (
            rows.filter(inside),
            {name: table.filter(inside) if "neuron" in table.columns else table for name, table in tables.items()},
        )
