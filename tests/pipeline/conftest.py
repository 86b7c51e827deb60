"""Small corpora and what neurons do on them, built the way the pipeline builds them."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import settings

from pipeline import baselines, reduction, tables
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
    """The plan of a corpus, and the capture of one layer whose activations are given window by window.

    Of all `windows`, or of some; going on from the capture `start`.
    """

    def build(
        sequences,
        arrays,
        *,
        layer=3,
        signed=False,
        seed=7,
        batch=4,
        order=None,
        fill=torch.nan,
        windows=None,
        probe=None,
        start=None,
        pool=None,
    ):
        plan = streaming.plan(sequences)
        n_neurons = arrays[0].shape[1]
        probe = np.full(n_neurons, 2, dtype=np.float32) if probe is None else probe
        reducing = LayerReduction(plan, layer=layer, signed=signed, seed=seed, probe=probe, start=start, pool=pool)
        batches = list(plan.batches(np.arange(plan.n_windows) if windows is None else windows, batch))
        for place in order(len(batches)) if order else range(len(batches)):
            # One position more than there are tokens, which nothing may look at.
            longest = max(len(arrays[window]) for window in batches[place]) + 1
            padded = torch.full((len(batches[place]), longest, n_neurons), fill)
            for row, window in enumerate(batches[place]):
                padded[row, : len(arrays[window])] = torch.from_numpy(arrays[window])
            reducing.receive(batches[place], padded)
        return plan, reducing.result()

    return build


@pytest.fixture(scope="session")
def differing():
    """Names of the arrays in which two captures are not equal to the byte."""

    def build(one, other):
        first, second = one.arrays(), other.arrays()
        return sorted(
            {
                *(set(first) ^ set(second)),
                *(
                    name
                    for name in set(first) & set(second)
                    if first[name].dtype != second[name].dtype
                    or first[name].shape != second[name].shape
                    or first[name].tobytes() != second[name].tobytes()
                ),
            }
        )

    return build


@pytest.fixture(scope="session")
def shrunk():
    """Sizes of the capture made so small that a few dozen windows are a large corpus, for the time of a `with`."""

    @contextmanager
    def build(**sizes):
        with pytest.MonkeyPatch.context() as patch:
            for name, size in sizes.items():
                for module in (streaming, reduction):
                    if hasattr(module, name):
                        patch.setattr(module, name, size)
            yield

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
        draw = np.random.default_rng(1)
        embeddings = draw.normal(size=(int(tokens.max()) + 1, 4)).astype(np.float32)
        reading = draw.normal(size=(4, arrays[0].shape[1])).astype(np.float32) if linear else None
        origin = {"fingerprint": "sha256:f", "corpus": "sha256:c"}
        records = activations(capture, plan, sequences, fingerprint="sha256:f")
        numbers = statistics(capture, plan, **origin)
        table = associations(capture, plan, records, sequences, embeddings=embeddings, reading=reading, **origin)
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
        weights = None if reading is None else embeddings[tokens] @ reading
        return Made(sequences, arrays, plan, capture, weights, *written)

    return build
