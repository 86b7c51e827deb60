"""Files that delphi's own code writes, read by our import: `python -m benchmarks.peers.delphi_results`.

Needs eai-delphi (`requirements/delphi.txt`) beside this project. A small random GPT-2 is cached by its `LatentCache`; texts are
judged by its scorers, with a client that answers at random and an encoder of noise; files are written as its pipeline writes
them. What is imported must be what its own loader reads back, and what scikit-learn, which it uses, makes of its judgements.
"""

import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from resources.foreign_files import ForeignFiles

PLACES = ("h.0.mlp.c_proj", "h.1.mlp.c_proj")
WINDOWS, LENGTH = 40, 16


class _Absent:
    """Stands in for packages that delphi imports and does not need here: servers of language models."""

    names = ("vllm", "tiktoken")

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is there."""


def main() -> None:
    """Write, import, compare, and say how much agreed."""
    sys.meta_path.insert(0, _Absent())
    with tempfile.TemporaryDirectory() as home:
        results = Path(home) / "results"
        cached(results)
        judged(results)
        tables, files = imported(results)
        rejected = [file for file in files if file["status"] != "imported"]
        if rejected:
            raise SystemExit(f"rejected: {rejected[:3]}")
        latents = compare_latents(results, tables)
        scores = compare_scores(results, tables)
    print(
        f"{len(files):,} files of delphi's own code were imported: {latents:,} latents have the windows that its loader reads, "
    )
    print(f"and {scores:,} scores are what scikit-learn makes of the judgements")


def cached(results: Path) -> None:
    """A cache of every activation above 0.1."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)).transformer
    cache: Any = import_module("delphi.latents.cache")
    found = cache.LatentCache(
        model, dict.fromkeys(PLACES, lambda values: values * (values > 0.1)), batch_size=8, transcode=True
    )
    tokens = torch.randint(300, (WINDOWS, LENGTH))
    found.run(tokens.numel(), tokens)
    found.save_splits(n_splits=3, save_dir=results / "latents")


def judged(results: Path) -> None:
    """Explanations, and what each scorer says of them, written as delphi's pipeline writes them."""
    latents: Any = import_module("delphi.latents.latents")
    client: Any = import_module("delphi.clients.client")
    scorers: Any = import_module("delphi.scorers")
    draw = random.Random(0)

    class Guessing(client.Client):  # type: ignore[misc]
        async def generate(self, prompt: Any, **_: Any) -> Any:  # noqa: ARG002
            kind = draw.randrange(5)
            return client.Response("no answer" if kind == 0 else f"[RESPONSE]: {draw.randrange(4)}" if kind == 1 else
                                   json.dumps([draw.randrange(2) for _ in range(4)]))  # fmt: skip

    class Noise:
        def encode(self, texts: Any) -> Any:
            return torch.randn(*(() if isinstance(texts, str) else (len(texts),)), 8)

        def similarity(self, one: Any, others: Any) -> Any:
            return torch.nn.functional.cosine_similarity(one.reshape(1, 1, -1), others[None], dim=-1)

    ask = Guessing("guessing")
    made = {
        "detection": scorers.DetectionScorer(ask, n_examples_shown=4),
        "fuzz": scorers.FuzzingScorer(ask, n_examples_shown=4),
        "embedding": scorers.EmbeddingScorer(Noise()),
    }
    for place in PLACES:
        for index in range(6):
            latent = latents.Latent(place, index)
            record = latents.LatentRecord(latent, explanation=f"words about {index}")
            record.test = [_example(latents.ActivatingExample, draw, quantile=quantile) for quantile in range(10)]
            record.not_active = [_example(latents.NonActivatingExample, draw, distance=-1.0) for _ in range(10)]
            record.extra_examples = record.not_active
            _write(results / "explanations" / f"{latent}.txt", record.explanation)
            for name, scorer in made.items():
                said = asyncio.run(scorer(record)).score
                _write(results / "scores" / name / f"{str(latent).replace('/', '--')}.txt", said)


def _example(kind: Any, draw: random.Random, **more: Any) -> Any:
    active = "quantile" in more
    values = torch.tensor([draw.random() if active else 0.0 for _ in range(8)])
    words = [draw.choice([" a", " b", "c"]) for _ in range(8)]
    return kind(tokens=torch.zeros(8, dtype=torch.long), activations=values, str_tokens=words, **more)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(value))


def imported(results: Path) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """The rows and the files of an import."""
    tables: dict[str, list[dict[str, Any]]] = {}
    files: list[dict[str, Any]] = []
    for batch in ForeignFiles(processes=1).batches("delphi", str(results), source="delphi"):
        files += batch.files
        for name, frame in batch.frames.items():
            tables.setdefault(name, []).extend(frame.to_dicts())
    return tables, files


def compare_latents(results: Path, tables: dict[str, list[dict[str, Any]]]) -> int:
    """Hold our records to what delphi's loader reads: windows in order of their maxima, and every activation."""
    loader: Any = import_module("delphi.latents.loader")
    mine: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in tables["imported_records"]:
        mine.setdefault((row["layer"], row["neuron"]), []).append(row)
    compared = 0
    for layer, place in enumerate(PLACES):
        for path in sorted((results / "latents" / place).glob("*.safetensors")):
            for data in loader.TensorBuffer(str(path), place):
                dense = np.zeros((WINDOWS, LENGTH), dtype=np.float32)
                at = data.activation_data.locations.numpy()
                dense[at[:, 0], at[:, 1]] = data.activation_data.activations.float().numpy()
                best = sorted(dense[dense.max(axis=1) > 0], key=lambda window: -window.max())[:20]
                rows = sorted(mine.pop((layer, data.latent.latent_index)), key=lambda row: row["rank"])
                if [row["activations"] for row in rows] != [window.tolist() for window in best]:
                    raise SystemExit(
                        f"{place} {data.latent.latent_index}: other activations than delphi's loader reads"
                    )
                compared += 1
    if mine:
        raise SystemExit(f"delphi's loader reads nothing of {sorted(mine)[:3]}")
    return compared


def compare_scores(results: Path, tables: dict[str, list[dict[str, Any]]]) -> int:
    """Hold our scores to scikit-learn's."""
    ours = {(row["layer"], row["neuron"], row["scorer"]): row["value"] for row in tables["imported_scores"]}
    for (layer, neuron, scorer), value in expected(results):
        found = ours.pop((layer, neuron, scorer))
        if (found is None) != (value is None) or (value is not None and not np.isclose(found, value, atol=1e-9)):
            raise SystemExit(f"{scorer} of {layer}:{neuron} is not {value}")
    if ours:
        raise SystemExit(f"scores of nothing: {sorted(ours)[:3]}")
    return sum(1 for _ in expected(results))


def expected(results: Path) -> Iterator[tuple[tuple[int, int, str], float | None]]:
    """What scikit-learn makes of each file of judgements; None where texts of one kind alone were judged."""
    metrics: Any = import_module("sklearn.metrics")
    for layer, place in enumerate(PLACES):
        for neuron in range(6):
            for name in ("detection", "fuzz"):
                rows = orjson.loads((results / "scores" / name / f"{place}_latent{neuron}.txt").read_bytes())
                said = [(row["activating"], row["prediction"]) for row in rows if row["prediction"] is not None]
                both = {truth for truth, _ in said} == {True, False}
                value = metrics.balanced_accuracy_score(*zip(*said, strict=True)) if both else None
                yield (layer, neuron, f"delphi:{name}.balanced_accuracy"), value
            rows = orjson.loads((results / "scores" / "embedding" / f"{place}_latent{neuron}.txt").read_bytes())
            value = metrics.roc_auc_score([row["distance"] >= 0 for row in rows], [row["similarity"] for row in rows])
            yield (layer, neuron, "delphi:embedding.auc"), value


if __name__ == "__main__":
    main()
