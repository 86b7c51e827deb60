"""Small corpora and what neurons do on them, built the way the pipeline builds them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import settings

from pipeline import baselines, tables
from pipeline import capture as streaming
from pipeline.activations import activations, statistics
from pipeline.associations import associations, corpus_tokens
from pipeline.exemplars import exemplars
from pipeline.reduction import LayerReduction
from pipeline.scores import scores
from pipeline.texts import token_texts

# A machine may be slow without anything being wrong.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def corpus():
    """Rows of `sequences` from (split, token ids) pairs, one document each, sorted by sequence id."""

    def build(*windows):
        digests = [hashlib.sha256(f"document {place}".encode()).hexdigest() for place in range(len(windows))]
        rows = [
            {
                "sequence_id": digest[:16],
                "document_id": f"d{place}",
                "document_hash": f"sha256:{digest}",
                "split": split,
                "offset": 0,
                "token_ids": list(tokens),
                "token_bytes": [f" t{token}".encode() for token in tokens],
                "text": "",
                "identity": f"sha256:{digest}",
                "run_id": "r",
            }
            for place, (digest, (split, tokens)) in enumerate(zip(digests, windows, strict=True))
        ]
        return tables.sequences.conform(pl.DataFrame(rows, schema=tables.sequences.schema))

    return build


@pytest.fixture(scope="session")
def some_corpus(corpus):
    """A corpus of `n` windows of ragged lengths, splits and tokens drawn from a seed."""

    def build(n, *, seed=0, longest=6, vocabulary=12, splits=tables.SPLITS):
        draw = np.random.default_rng(seed)
        return corpus(
            *(
                (
                    splits[draw.integers(len(splits))],
                    draw.integers(0, vocabulary, draw.integers(1, longest + 1)).tolist(),
                )
                for _ in range(n)
            )
        )

    return build


@pytest.fixture(scope="session")
def truth():
    """What `n_neurons` neurons do on each window of a corpus: arrays (token, neuron) of few values, so that many tie.

    Neuron 0 is constant, neuron 1 is dead (zero or less), the others take quarters between -2 and 2.
    """

    def build(sequences, *, n_neurons=6, seed=0):
        draw = np.random.default_rng(seed)
        arrays = []
        for tokens in sequences.get_column("token_ids").to_list():
            x = draw.integers(-8, 9, (len(tokens), n_neurons)).astype(np.float32) / 4
            x[:, 0] = 0.375
            if n_neurons > 1:
                x[:, 1] = -np.abs(x[:, 1])
            arrays.append(x)
        return arrays

    return build


@pytest.fixture(scope="session")
def captured():
    """The plan of a corpus, and the capture of one layer whose activations are given window by window."""

    def build(sequences, arrays, *, layer=3, signed=False, seed=7, batch=4, order=None, fill=torch.nan):
        plan = streaming.plan(sequences)
        n_neurons = arrays[0].shape[1]
        reduction = LayerReduction(plan, layer=layer, n_neurons=n_neurons, signed=signed, seed=seed)
        batches = list(plan.batches(batch))
        for place in order(len(batches)) if order else range(len(batches)):
            windows = batches[place]
            longest = max(len(arrays[window]) for window in windows)
            padded = torch.full((len(windows), longest, n_neurons), fill)
            for row, window in enumerate(windows):
                padded[row, : len(arrays[window])] = torch.from_numpy(arrays[window])
            reduction.receive(windows, padded)
        return plan, reduction.result()

    return build


@dataclass(frozen=True)
class Made:
    """All tables of one layer, made from a corpus and what its neurons do, with the baselines as explainers."""

    sequences: pl.DataFrame
    arrays: list[np.ndarray]
    plan: streaming.Plan
    capture: streaming.LayerCapture
    weights: np.ndarray | None
    activations: pl.DataFrame
    statistics: pl.DataFrame
    associations: pl.DataFrame
    exemplars: pl.DataFrame
    explanations: pl.DataFrame
    simulations: pl.DataFrame
    scores: pl.DataFrame

    def window(self, sequence_id):
        return self.sequences.get_column("sequence_id").index_of(sequence_id)


@pytest.fixture(scope="session")
def made(captured):
    """Every hop from activations to scores, each table held to its own rules."""

    def build(sequences, arrays, *, signed=False, linear=True, layer=3):
        plan, capture = captured(sequences, arrays, signed=signed, layer=layer)
        tokens = corpus_tokens(plan)
        weights = np.random.default_rng(1).normal(size=(len(tokens), arrays[0].shape[1])).astype(np.float32)
        weights = weights if linear else None
        origin = {"fingerprint": "sha256:f", "corpus": "sha256:c"}
        records = activations(capture, plan, sequences, fingerprint="sha256:f", seed=7)
        numbers = statistics(capture, plan, **origin)
        table = associations(capture, plan, records, sequences, weights=weights, **origin)
        chosen = exemplars(records, sequences)
        said = baselines.explanations(table, chosen, token_texts(sequences), statistics=numbers.drop("identity"))
        predicted = baselines.simulations(said, chosen, table)
        frames = {
            "activations": records,
            "neuron_statistics": numbers,
            "token_associations": table,
            "exemplars": chosen,
            "explanations": said,
            "simulations": predicted,
            "scores": scores(predicted, said, seed=7),
        }
        written = [
            tables.TABLES[name].conform(frame.with_columns(pl.lit("r").alias("run_id")))
            for name, frame in frames.items()
        ]
        return Made(sequences, arrays, plan, capture, weights, *written)

    return build
