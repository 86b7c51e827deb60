"""Benchmark of the explorer: how long pages of a lake of GPT-2 XL's size take, and what the server needs.

    python -m benchmarks.explorer --lake /tmp/xl --layers 48 --neurons 6400 --whole 1

The lake is made up, once: each neuron of all layers has statistics, an explanation and its scores; the neurons of
`--whole` layers have also 60 records, exemplars, simulations and tokens, as a page of a neuron reads them. What a page
reads lies in one layer, so more such layers would not make it slower. Texts are English, from the standard library's
docstrings, in pieces of words: how far a page can be compressed depends on its language. The server is a process of its own,
asked over HTTP; on two cores the times are those of both.
"""

import argparse
import hashlib
import http.client
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import Figure, as_json, as_text
from explorer.kept import Kept
from explorer.meaning import Meaning
from explorer.server import Explorer, serve
from explorer.staleness import Staleness
from pipeline.ports import Document, Usage, Vector
from pipeline.scale import scale
from pipeline.scores import SCORERS, SETS
from pipeline.tables import TABLES
from resources.corpus import DemoCorpus
from resources.delta import DeltaLake

LENGTH, WINDOWS, VOCABULARY = 64, 4096, 30_000
TOKEN = re.compile(r"\s*(?:\w{1,6}|[^\w\s])")
"""Words and pieces of words: of four letters on average, about as the tokens of language models."""
WIDTH = 384
"""Of an embedding, as all-MiniLM-L6-v2 has it."""
RECORDS = {"top": 20, "random": 10, "q0": 6, "q1": 6, "q2": 6, "q3": 6, "q4": 6}
FEW = 50
"""Neurons that a class looks at together."""
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the lake unless it is there, ask the server, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="folder of the lake; a temporary one unless given")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--neurons", type=int, default=6_400, help="of each layer")
    parser.add_argument("--whole", type=int, default=1, help="layers whose neurons have texts")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--users", type=int, default=50, help="at once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve:
        _serve(asked.lake)
        return
    with tempfile.TemporaryDirectory() as home:
        folder = asked.lake or Path(home) / "lake"
        if not folder.exists():
            made_up(folder, layers=asked.layers, neurons=asked.neurons, whole=asked.whole)
        figures = list(measured(folder, asked))
    print(as_json(figures) if asked.json else "\n".join(as_text(figure) for figure in figures))


class Scattered:
    """An encoder that gives any text a vector of its own, in no time."""

    name = "local:made-up"

    def fingerprint(self) -> str:
        return "sha256:made-up"

    def provenance(self) -> dict[str, Any]:
        return {}

    def encode(self, texts: Sequence[str], *, run_id: str) -> tuple[list[Vector], Usage]:  # noqa: ARG002 (the port has it)
        found = [np.random.default_rng(list(text.encode())).standard_normal(WIDTH, dtype=np.float32) for text in texts]
        return [Vector(one / np.linalg.norm(one)) for one in found], Usage()


# ---- the lake


def made_up(folder: Path, *, layers: int, neurons: int, whole: int) -> None:
    """Write the lake."""
    lake, generator = DeltaLake(folder), np.random.default_rng(0)
    words = [_word(generator) for _ in range(VOCABULARY)]
    tokens, ids = _prose()
    names = [hashlib.sha256(str(place).encode()).hexdigest()[:16] for place in range(WINDOWS)]
    sequences = pl.DataFrame({
        "sequence_id": names, "document_id": [f"made-up.jsonl:{place}" for place in range(WINDOWS)],
        "document_hash": names, "split": ["explain"] * WINDOWS, "offset": [0] * WINDOWS, "token_ids": ids.tolist(),
        "token_bytes": [[tokens[token] for token in row] for row in ids],
        "text": [b"".join(tokens[token] for token in row).decode() for row in ids],
    }, schema_overrides={"offset": pl.Int32, "token_ids": pl.List(pl.Int32)})  # fmt: skip
    lake.replace("sequences", _stamped("sequences", sequences), record={})
    for layer in range(layers):
        for table, rows in _layer(layer, neurons, generator, words).items():
            lake.replace(table, _stamped(table, rows), layer=layer, record={})
        if layer < whole:
            for table, rows in _texts(layer, neurons, generator, names, ids).items():
                lake.replace(table, _stamped(table, rows), layer=layer, record={})
        print(f"layer {layer} made", file=sys.stderr)


def _prose() -> tuple[list[bytes], Any]:
    """The tokens that texts are made of, and their ids in each window."""
    stdlib = DemoCorpus({"stdlib": Path(sysconfig.get_paths()["stdlib"])})
    known: dict[bytes, int] = {}
    ids: list[int] = []
    for document in stdlib.documents():
        assert isinstance(document, Document)
        ids += [known.setdefault(token.encode(), len(known)) for token in TOKEN.findall(document.text)]
    return list(known), np.resize(np.asarray(ids, dtype=np.int32), (WINDOWS, LENGTH))


def _word(generator: np.random.Generator) -> bytes:
    return (" " + "".join(generator.choice(SYLLABLES, generator.integers(1, 4)))).encode()


def _stamped(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with what this benchmark has no use for, and the types of the table."""
    schema = TABLES[table].schema
    rest = [
        pl.lit("sha256:made-up" if name in ("identity", "run_id") else None, dtype=kind).alias(name)
        for name, kind in schema.items()
        if name not in rows.columns
    ]
    return rows.with_columns(*rest).select(pl.col(name).cast(kind) for name, kind in schema.items())


def _layer(layer: int, neurons: int, generator: np.random.Generator, words: Sequence[bytes]) -> dict[str, pl.DataFrame]:
    place = np.arange(neurons)
    names = [f"{layer * neurons + one:016x}" for one in place]
    said = generator.integers(0, len(words), (neurons, 8))
    texts = ["words such as" + b",".join(words[word] for word in row).decode() for row in said]
    values = np.clip(generator.normal(0.4, 0.25, neurons), -1, 1)
    lookups = np.clip(values + generator.normal(0.1, 0.2, neurons), -1, 1)
    at = {"layer": [layer] * neurons, "neuron": place, "polarity": ["+"] * neurons}
    statistics = {
        "layer": at["layer"], "neuron": place, "count": [WINDOWS * LENGTH] * neurons, "mean": values, "variance": values**2,
        "skewness": values, "kurtosis": values, "minimum": [-0.17] * neurons, "maximum": [8.0] * neurons,
        "fraction_positive": generator.random(neurons), "histogram": [[0] * 45 + list(range(40, 0, -4)) + [0] * 44] * neurons,
        "quantile_boundaries": [[1.0, 2.0, 4.0, 6.0]] * neurons, "dead": [False] * neurons, "n_sequences": [WINDOWS] * neurons,
        "n_tokens": [WINDOWS * LENGTH] * neurons,
    }  # fmt: skip
    explanations = {**at, "explanation_id": names, "method": ["token-activation-pairs"] * neurons, "explainer": ["made-up"] * neurons,
                    "text": texts, "exemplar_ids": [[]] * neurons}  # fmt: skip
    kinds = [(scorer, split) for scorer in SCORERS for split in SETS]
    repeated = np.repeat(place, len(kinds))
    scores = {
        "layer": [layer] * len(repeated), "neuron": repeated, "polarity": ["+"] * len(repeated),
        "explanation_id": np.repeat(names, len(kinds)), "method": ["token-activation-pairs"] * len(repeated),
        "simulator": ["made-up"] * len(repeated), "scorer": [one for one, _ in kinds] * neurons,
        "split": [one for _, one in kinds] * neurons, "formula_version": [1] * len(repeated), "value": values[repeated],
        "ci_low": values[repeated] - 0.1, "ci_high": values[repeated] + 0.1, "n_sequences": [10] * len(repeated),
        "n_tokens": [640] * len(repeated), "n_failed": [0] * len(repeated), "token_lookup": lookups[repeated],
        "token_linear": lookups[repeated] / 2,
    }  # fmt: skip
    subject = {"layer": [layer], "subject": ["made-up-xl"], "site": [f"h.{layer}.mlp.c_proj"], "n_neurons": [neurons],
               "signed": [False], "fingerprint": ["sha256:made-up"]}  # fmt: skip
    vectors = generator.standard_normal((neurons, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = {**at, "explanation_id": names, "encoder": [Scattered.name] * neurons, "vector": _lists(vectors),
                  "fingerprint": [Scattered().fingerprint()] * neurons}  # fmt: skip
    return {
        "explanation_embeddings": pl.DataFrame(embeddings),
        "subject_layers": pl.DataFrame(subject), "neuron_statistics": pl.DataFrame(statistics),
        "explanations": pl.DataFrame(explanations, schema_overrides={"exemplar_ids": pl.List(pl.String)}),
        "scores": pl.DataFrame(scores),
    }  # fmt: skip


def _texts(
    layer: int, neurons: int, generator: np.random.Generator, names: Sequence[str], ids: Any
) -> dict[str, pl.DataFrame]:
    strata = [(stratum, rank) for stratum, count in RECORDS.items() for rank in range(count)]
    each = len(strata)
    windows = np.stack([generator.permutation(WINDOWS)[:each] for _ in range(neurons)]).ravel()
    values = np.where(
        generator.random((len(windows), LENGTH)) < 0.06, generator.gamma(2.0, 1.5, (len(windows), LENGTH)), -0.1
    )
    values = np.minimum(np.round(values * 512) / 512, 8.0).astype(np.float32)
    place = np.repeat(np.arange(neurons), each)
    at = {"layer": [layer] * len(place), "neuron": place, "polarity": ["+"] * len(place)}
    stratum, rank = ([one[which] for one in strata] * neurons for which in (0, 1))
    sequence_ids = pl.Series([names[int(one)] for one in windows])
    activations = pl.DataFrame({
        **at, "stratum": stratum, "rank": rank, "sequence_id": sequence_ids, "peak": values.max(axis=1),
        "peak_token": values.argmax(axis=1), "activations": _lists(values),
    })  # fmt: skip
    shown = np.flatnonzero(
        [(one == "top" and number < 10) or (one == "random" and number < 5) for one, number in strata] * neurons
    )
    use = np.array(
        [("explain" if number < 5 else "score") if one == "top" else "score" for one, number in strata] * neurons
    )[shown]
    exemplars = pl.DataFrame({
        **{name: np.asarray(column)[shown] for name, column in at.items()}, "split": use,
        "stratum": np.asarray(stratum)[shown], "rank": np.asarray(rank)[shown], "sequence_id": sequence_ids.gather(shown),
        "token_ids": _lists(ids[windows[shown]]), "activations": _lists(values[shown]),
        "scaled_activations": _lists(scale(values[shown], 8.0)), "scale_maximum": [8.0] * len(shown),
        "exemplar_id": [f"{layer:04x}{one:012x}" for one in shown],
    })  # fmt: skip
    scored = np.flatnonzero(use == "score")
    own = np.asarray(place)[shown][scored]
    guess = np.clip(values[shown][scored] + generator.normal(0, 0.5, (len(scored), LENGTH)), 0, 10).astype(np.float32)
    simulations = pl.DataFrame({
        "layer": [layer] * len(own), "neuron": own, "polarity": ["+"] * len(own),
        "explanation_id": [f"{layer * neurons + one:016x}" for one in own], "simulator": ["made-up"] * len(own),
        "exemplar_id": exemplars.get_column("exemplar_id").gather(scored), "stratum": exemplars.get_column("stratum").gather(scored),
        "rank": exemplars.get_column("rank").gather(scored), "scale": ["scaled"] * len(own), "expected": _lists(guess),
        "true": _lists(values[shown][scored]), "coverage": [1.0] * len(own), "request_ids": [[]] * len(own),
    }, schema_overrides={"request_ids": pl.List(pl.String)})  # fmt: skip
    tokens = np.sort(generator.integers(0, int(ids.max()) + 1, (neurons, 400)), axis=1)
    associations = pl.DataFrame({
        "layer": [layer] * neurons, "neuron": np.arange(neurons), "polarity": ["+"] * neurons, "token_ids": _lists(tokens),
        "counts": _lists(generator.integers(0, 50, tokens.shape)), "means": _lists(generator.random(tokens.shape)),
        "fallback": [0.01] * neurons,
    })  # fmt: skip
    return {
        "activations": activations,
        "exemplars": exemplars,
        "simulations": simulations,
        "token_associations": associations,
    }


def _lists(values: Any) -> pl.Series:
    return pl.Series(values).arr.to_list()


# ---- the server


def _serve(folder: Path) -> None:
    lake = DeltaLake(folder)
    files = folder.parent / f"{folder.name}-explorer"
    explorer = Explorer(Kept(lake), Staleness(lake, None), folder, files, meaning=Meaning(files, Scattered))
    serve(explorer, host="127.0.0.1", port=0, token=None, said=lambda address: print(address, flush=True))


def measured(folder: Path, asked: argparse.Namespace) -> Iterable[Figure]:
    """The figures."""
    generator = random.Random(0)
    for name, goal in (("first_start", 5.0), ("later_start", None)):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.explorer", "--serve", "--lake", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().strip().rpartition(":")[2])
                _get(http.client.HTTPConnection("127.0.0.1", port), "/")
                yield _figure(name, time.perf_counter() - begun, "s", goal, "from the command to the first page, the index made with it"
                              if name == "first_start" else "the same again, with the full-text index there")  # fmt: skip
                if name == "first_start":
                    continue
                yield from _asked(port, asked, generator, server.pid)
                peak = _peak(server.pid)
                yield _figure(
                    "memory", peak / 2**30, "GiB", 1.0, "most that the server held, all of the above together"
                )
            finally:
                server.terminate()


def _asked(port: int, asked: argparse.Namespace, generator: random.Random, pid: int) -> Iterable[Figure]:
    def neuron() -> str:
        return f"/{generator.randrange(asked.whole)}/{generator.randrange(asked.neurons)}"

    def words() -> str:
        return f"/search?q={generator.choice(SYLLABLES)}{generator.choice(SYLLABLES)}"

    def layer() -> str:
        return f"/{generator.randrange(asked.layers)}?sort=score"

    def meaning() -> str:
        return f"{words()}&by=meaning"

    kinds = {"neuron": neuron, "search": words, "meaning": meaning, "layer": layer}
    for kind, path in kinds.items():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(3):
            _get(connection, path())
        before = _worked(pid)
        found = sorted(_get(connection, path())[0] for _ in range(asked.requests))
        detail = f"{asked.requests} pages one after the other"
        worked = (_worked(pid) - before) / asked.requests
        yield _figure(f"{kind}_work", 1e3 * worked, "ms", None, f"processor time of the server for a page; {detail}")
        if kind == "neuron":
            yield _figure("neuron_p50", 1e3 * _at(found, 0.5), "ms", 50, detail)
        yield _figure(
            f"{kind}_p95",
            1e3 * _at(found, 0.95),
            "ms",
            {"neuron": 150, "search": 150, "meaning": 150}.get(kind),
            detail,
        )
    _, size = _get(http.client.HTTPConnection("127.0.0.1", port), neuron())
    yield _figure(
        "neuron_size",
        size / 2**10,
        "KiB",
        15,
        f"HTML of a neuron with {sum(RECORDS.values())} texts and 10 simulated, gzipped",
    )
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for name, address, of in (
        ("layer_compared", "/compare?a=2100-01-01&layer=0", f"one layer of {asked.neurons:,} neurons beside itself"),
        ("neuron_compared", "/0/0/compare?a=2100-01-01", "one neuron beside itself"),
    ):
        before = _worked(pid)
        _get(connection, address)
        yield _figure(name, _worked(pid) - before, "s", None, f"processor time of the server: {of}")
    whole = [(layer, neuron) for layer in range(asked.whole) for neuron in range(asked.neurons)]
    few = generator.sample(whole, min(len(whole), FEW))
    for name, pages, of in (("crowd", whole, "all neurons"), ("class", few, f"the same {len(few)} neurons")):
        yield from _crowd(name, port, asked, pid, pages=pages, of=of)


def _crowd(
    name: str, port: int, asked: argparse.Namespace, pid: int, *, pages: Sequence[tuple[int, int]], of: str
) -> Iterable[Figure]:
    """Many users at once, each of whom asks for one page after the other."""
    times: list[float] = []
    wrong: list[str] = []

    def user(seed: int) -> None:
        mine, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port)
        try:
            for _ in range(max(1, asked.requests // 20)):
                layer, neuron = mine.choice(pages)
                times.append(_get(connection, f"/{layer}/{neuron}")[0])
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            wrong.append(str(error))

    before = _worked(pid)
    threads = [threading.Thread(target=user, args=(seed,)) for seed in range(asked.users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    detail = f"{asked.users} users at once, {len(times):,} pages of {of} without a pause, {len(wrong)} errors"
    yield _figure(f"{name}_p95", 1e3 * _at(sorted(times), 0.95), "ms", 500, detail)
    worked = (_worked(pid) - before) / max(1, len(times))
    yield _figure(f"{name}_work", 1e3 * worked, "ms", None, f"processor time of the server for a page; {detail}")


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[float, int]:
    """Seconds that a page took, and its bytes as they were sent."""
    begun = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    reply = connection.getresponse()
    body = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{path} was answered with {reply.status}")
    return time.perf_counter() - begun, len(body)


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def _peak(pid: int) -> int:
    """Most bytes that a process ever held."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} says nothing of its memory")


def _worked(pid: int) -> float:
    """Seconds of processor time that a process has used; unlike the time a page takes, it hardly grows under load."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _figure(name: str, value: float, unit: str, goal: float | None, detail: str) -> Figure:
    cores = len(os.sched_getaffinity(0))
    return Figure(name, value, unit, goal, higher_is_better=False, detail=f"{detail}; {cores} cores")


if __name__ == "__main__":
    main()
