"""Benchmark of scoring at the size of GPT-2 XL: stored simulations in, scores out, a layer at a time.

    python -m benchmarks.scale --layers 48 --neurons 6400

Each layer of simulations is written to a lake in a temporary folder: ten sequences of 64 tokens for each neuron, true
activations that are sparse and expected ones that follow them with noise, drawn with a seed. Then each is read and
scored as the asset `scores` does it, and the rows are dropped. The peer is a loop over neurons that does what OpenAI's
code does for each: the three scores of Bills et al. 2023 over the flattened sequences, and over each sequence by
itself, for all and for the random ones, with numpy. It is timed on some of the same neurons. It makes no intervals,
no p-values, and three formulas where we make eleven; the third figure is of the same three without the rest. All in
processor time.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from assets.forward_pass import peak_mib
from assets.pieces import pieces
from benchmarks.figures import Figure, as_json, as_text
from pipeline import scores as scoring
from pipeline.tables import TABLES
from resources.delta import DeltaLake

SEQUENCES, TOKENS = 10, 64
Arrays = NDArray[np.float32]
GOAL = 20.0
"""Times the peer's pace."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, score, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--neurons", type=int, default=6_400, help="of each layer")
    parser.add_argument("--sample", type=int, default=400, help="neurons of a layer that the peer scores")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(DeltaLake(Path(folder) / "lake"), asked.layers, asked.neurons, asked.sample)
    print(as_json(found) if asked.json else "\n".join(map(as_text, found)))


def measured(lake: DeltaLake, layers: int, neurons: int, sample: int) -> list[Figure]:
    """The figures; `lake` is filled a layer at a time."""
    ours = alike = peer = 0.0
    rows, peaks = 0, []
    for layer in range(layers):
        explanations, simulations = stored(layer, neurons)
        lake.replace("explanations", explanations, layer=layer, record={})
        lake.replace("simulations", simulations, layer=layer, record={})
        del explanations, simulations
        started = time.process_time()
        read = lake.read("simulations", layer=layer), lake.read("explanations", layer=layer)
        for explanations, tables in pieces(read[1], {"simulations": read[0]}):
            rows += len(scoring.scores(tables["simulations"], explanations, seed=0))
        ours += time.process_time() - started
        started = time.process_time()
        three = _three(read[0])
        alike += time.process_time() - started
        some = read[0].filter(pl.col("neuron") < sample).sort("neuron", "stratum", "rank")
        flat = [
            (part["true"].to_list(), part["expected"].to_list())
            for _, part in some.group_by("neuron", maintain_order=True)
        ]
        started = time.process_time()
        theirs = [_peer(*neuron) for neuron in flat]
        peer += (time.process_time() - started) * neurons / len(flat)
        # Both sides must have made the same numbers, or the times say nothing.
        np.testing.assert_allclose(np.asarray(theirs), three[: len(flat)], rtol=1e-6)
        peaks.append(peak_mib())
    count, scored = (
        layers * neurons,
        f"{layers} layers of {neurons:,} neurons, {SEQUENCES} sequences of {TOKENS} tokens each",
    )
    return [
        Figure("neurons scored", count, "neurons", None, higher_is_better=True,
               detail=f"{scored}; {rows:,} score rows in {ours:,.0f} s, reading the lake included"),
        Figure("full scoring over OpenAI's loop", peer / ours, "times as fast", GOAL, higher_is_better=True,
               detail=f"{count / ours:,.0f} neurons/s with eleven formulas, intervals and p-values, against {count / peer:,.0f} with three"),
        Figure("the same three formulas over OpenAI's loop", peer / alike, "times as fast", GOAL, higher_is_better=True,
               detail=f"{count / alike:,.0f} neurons/s against {count / peer:,.0f}, equal to 6 digits"),
        Figure("peak memory after the last layer over the first", peaks[-1] / peaks[0], "", 1.1, higher_is_better=False,
               detail=f"{peaks[0]:,.0f} MiB after the first, {peaks[-1]:,.0f} MiB after the last"),
    ]  # fmt: skip


def stored(layer: int, neurons: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One explanation of each neuron of a layer, and ten simulations of each."""
    drawn = np.random.default_rng([0, layer])
    shape = (neurons * SEQUENCES, TOKENS)
    true = np.where(drawn.random(shape) < 0.1, drawn.gamma(2.0, 1.0, shape), -0.1).astype(np.float32)
    expected = (true + drawn.normal(0.0, 1.0, shape)).astype(np.float32)
    neuron = np.repeat(np.arange(neurons, dtype=np.int32), SEQUENCES)
    place = np.tile(np.arange(SEQUENCES, dtype=np.int32), neurons)
    named = pl.Series("neuron", neuron).cast(pl.String)
    exemplar = named + "." + pl.Series(place).cast(pl.String)
    explanations = filled("explanations", {
        "layer": np.full(neurons, layer, dtype=np.int32), "neuron": np.arange(neurons, dtype=np.int32),
        "explanation_id": named.gather_every(SEQUENCES), "method": ["scripted"] * neurons, "text": ["words"] * neurons,
        "identity": named.gather_every(SEQUENCES),
    })  # fmt: skip
    simulations = filled("simulations", {
        "layer": np.full(len(neuron), layer, dtype=np.int32), "neuron": neuron, "explanation_id": named,
        "exemplar_id": exemplar, "stratum": np.where(place < 5, "top", "random"), "rank": place % 5,
        "expected": lists(expected), "true": lists(true), "coverage": np.ones(len(neuron), dtype=np.float32),
        "identity": exemplar,
    })  # fmt: skip
    return explanations, simulations


def filled(table: str, cells: dict[str, Any]) -> pl.DataFrame:
    """Rows of a table with these cells, and nothing of interest in the others."""
    declared, count = TABLES[table], len(cells["identity"])
    plain: dict[Any, Any] = {
        pl.String: "+",
        pl.Int32: 0,
        pl.Int64: 0,
        pl.Float32: 0.0,
        pl.Float64: 0.0,
        pl.Boolean: False,
    }
    return pl.DataFrame(
        {
            name: pl.Series(name, cells[name], dtype=column.type)
            if name in cells
            else pl.Series(name, [None if column.nullable else plain.get(column.type, [])] * count, dtype=column.type)
            for name, column in declared.columns.items()
        }
    )


def lists(values: NDArray[Any]) -> pl.Series:
    """A column of lists, one for each row of an array."""
    return pl.Series(values).arr.to_list()


def _three(simulations: pl.DataFrame) -> NDArray[np.float64]:
    """(neuron, 36): the three scores of all sequences, of the random ones, and of each sequence, as `_peer` gives them."""
    rows = simulations.sort("neuron", "stratum", "rank")
    n = np.full(rows.get_column("neuron").n_unique(), SEQUENCES, dtype=np.int32)
    tokens = scoring._Tokens.of(rows, n)
    sums = scoring._moments(tokens, tokens.y, tokens.s)
    parts = [sums.sum(axis=1), sums[:, : SEQUENCES // 2].sum(axis=1), *(sums[:, at] for at in range(SEQUENCES))]
    return np.concatenate([scoring._formulas(part)[:, :3] for part in parts], axis=1)


def _peer(true: list[list[float]], expected: list[list[float]]) -> list[float]:
    """The same numbers for one neuron, by calls of numpy on Python lists, as a loop over neurons makes them."""
    flat = [_together(true, expected), _together(true[:5], expected[:5]), *zip(true, expected, strict=True)]
    found: list[float] = []
    for each_true, each_expected in flat:
        y, s = np.array(each_true), np.array(each_expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = float(np.corrcoef(y, s)[0, 1])
        found += [
            correlation,
            float(1 - np.mean(np.square(y - s)) / np.mean(np.square(y))),
            float(1 - np.mean(np.abs(y - s)) / np.mean(np.abs(y))),
        ]
    return found


def _together(true: list[list[float]], expected: list[list[float]]) -> tuple[list[float], list[float]]:
    return list(chain(*true)), list(chain(*expected))


if __name__ == "__main__":
    main()
