"""Verify: whether the numbers of a neuron come out again, link by link from the files of the model to the score.

    weights -> tokenizer and documents -> activations -> exemplars -> explanations -> simulations -> scores

Every link is held against what is stored. What is not at hand (the model, the corpus, a package of another version) is said
and not counted as equal. Exemplars to scores must come out to the bit. So must activations where model, packages and
processor are those that made them; elsewhere float32 may differ by `TOLERANCE` of the strongest of the layer
(measured between processors and kernels: up to 1.1e-6), and other number formats are not compared.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from explorer.replay import REPLAYED, SAME, Records, Replayed, replay
from pipeline.errors import NeuronLedgerError
from pipeline.ports import Corpus, Document, Lake, SubjectModel
from pipeline.sequences import document_hash
from pipeline.sequences import sequences as windows
from resources.delta import collect

TOLERANCE = 1e-5
STEPS = 12
"""Activations are kept in steps of 2**(e - 12), where 2**e is the power of two above the strongest of the window."""

EQUAL, DIFFERS, NOT_CHECKED = "equal", "differs", "not checked"


@dataclass(frozen=True)
class Link:
    """One link of the chain: where, how it came out (`equal`, `differs`, `not checked`), and in words what was compared."""

    name: str
    at: str
    outcome: str
    said: str
    neurons: tuple[int, ...] = ()
    """Those that differ."""


@dataclass(frozen=True)
class Outside:
    """What is at hand besides the lake; None for what is not, with the reason in `why`."""

    subject: SubjectModel | None = None
    corpus: Corpus | None = None
    why: Mapping[str, str] = field(default_factory=dict)


Say = Callable[[str], None]


def verify(
    lake: Lake,
    layer: int,
    neuron: int | None = None,
    *,
    outside: Outside | None = None,
    recompute: int = 3,
    seed: int = 0,
    say: Say = lambda _: None,
    with_documents: bool = True,
) -> list[Link]:
    """The links of one neuron, or of all of a layer, of which `recompute` neurons drawn by `seed` are run again.

    Raises:
        NeuronLedgerError: the lake has no such layer or neuron.
    """
    outside = outside or Outside()
    statistics = collect(lake.scan("neuron_statistics", layer=layer).select("neuron").sort("neuron"))
    known = statistics.get_column("neuron").to_list()
    if (neuron is not None and neuron not in known) or not known:
        name = f"layer {layer}" if neuron is None else f"neuron {layer}:{neuron}"
        raise NeuronLedgerError(f"{name} is not in the lake {lake.uri}; see what is there with `neuronledger status`")
    records = Records(lake)
    drawn = [neuron] if neuron is not None else drawn_neurons(known, recompute, seed=seed, layer=layer)
    at = f"layer {layer}" if neuron is None else f"{layer}:{neuron}"
    say(f"{at}: weights")
    links = [weights(lake, records, layer, outside)]
    if with_documents:
        say(f"{at}: documents")
        links.append(documents(lake, records, layer, drawn if neuron is not None else None, outside))
    say(f"{at}: activations")
    if drawn:
        links.append(activations(lake, records, layer, drawn, outside))
    for table in REPLAYED:
        if table == "judgements" and records.last(table, layer, neuron) is None:
            continue
        say(f"{at}: {table}")
        found = replay(lake, records, table, layer, neuron, subject=outside.subject)
        links.append(_replayed(found, at))
    if drawn and records.last("ablations", layer, neuron) is not None:
        say(f"{at}: ablations")
        links.append(ablations(lake, records, layer, drawn, outside))
    return links


def captured_layers(lake: Lake) -> list[int]:
    """The layers whose neurons are in the lake."""
    found = collect(lake.scan("neuron_statistics").select(pl.col("layer").unique().sort()))
    return [int(layer) for layer in found.get_column("layer")]


def drawn_neurons(known: Sequence[int], count: int, *, seed: int, layer: int) -> list[int]:
    """So many neurons of a layer, the same ones for the same seed."""
    generator = np.random.default_rng([seed, layer])
    return sorted(int(one) for one in generator.choice(known, size=min(count, len(known)), replace=False))


def weights(lake: Lake, records: Records, layer: int, outside: Outside) -> Link:
    """Whether the files of the model are those that the activations were made with."""
    at = f"layer {layer}"
    record = records.last("activations", layer)
    if record is None:
        return Link("weights", at, NOT_CHECKED, "no record of the activations")
    if outside.subject is None:
        return Link("weights", at, NOT_CHECKED, outside.why.get("subject", "the model is not at hand"))
    stored = lake.read("subject_layers", layer=layer)
    made = json.loads(record["environment"]).get("subject", {})
    now = outside.subject.provenance()
    wrong = [
        name for name, file in made.get("files", {}).items()
        if now["files"].get(name, {}).get("hash") != file["hash"]
    ]  # fmt: skip
    fingerprint = outside.subject.fingerprints()[layer]
    if len(stored) and fingerprint != stored.item(0, "fingerprint"):
        said = f"the fingerprint of the layer is {fingerprint}, and was {stored.item(0, 'fingerprint')}"
        return Link("weights", at, DIFFERS, said + (f"; changed files: {', '.join(wrong)}" if wrong else ""))
    if wrong:
        # They differ somewhere that cannot reach this layer.
        said = f"{', '.join(wrong)} changed, but nothing that reaches this layer: its fingerprint is the same"
        return Link("weights", at, EQUAL, said)
    return Link("weights", at, EQUAL, f"{len(made.get('files', {}))} files of the model have the hashes recorded")


def documents(lake: Lake, records: Records, layer: int, neurons: Sequence[int] | None, outside: Outside) -> Link:
    """Whether the documents behind a layer's records, or those of some neurons, give the same tokens again."""
    record = records.last("sequences", None)
    at = "all" if neurons is None else f"{layer}:{neurons[0]}"
    if record is None:
        return Link("documents", at, NOT_CHECKED, "no record of the sequences")
    if outside.subject is None or outside.corpus is None:
        return Link("documents", at, NOT_CHECKED, outside.why.get("corpus", "model and corpus are not both at hand"))
    stored = lake.read("sequences")
    if neurons is not None:
        used = collect(lake.scan("activations", layer=layer, neurons=neurons).select("sequence_id").unique())
        stored = stored.join(used, on="sequence_id", how="semi")
    return retokenised(stored, record, outside.subject, outside.corpus, at=at)


def retokenised(
    stored: pl.DataFrame, record: Mapping[str, Any], subject: SubjectModel, corpus: Corpus, *, at: str
) -> Link:
    """Whether the documents of some sequences give these sequences again."""
    wanted = set(stored.get_column("document_hash"))
    found: dict[str, Document] = {}
    for document in corpus.documents():
        if (
            isinstance(document, Document)
            and (hashed := document_hash(document.text)) in wanted
            and hashed not in found
        ):
            found[hashed] = document
    missing = stored.filter(~pl.col("document_hash").is_in(list(found)))
    if len(missing):
        first = missing.item(0, "document_id")
        said = f"{len(missing):,} of {len(stored):,} documents are not in the corpus any more, such as {first}"
        return Link("documents", at, DIFFERS, said)
    made = json.loads(record["settings"])
    again = windows(found.values(), subject.tokenize, length=made["length"], seed=made["seed"]).frame
    columns = ["sequence_id", "document_hash", "split", "offset", "token_ids", "token_bytes", "identity"]
    same = stored.select(columns).sort("sequence_id").equals(again.select(columns).sort("sequence_id"))
    if not same:
        gone = len(stored) - len(stored.join(again, on=["sequence_id", "identity"], how="semi"))
        return Link("documents", at, DIFFERS, f"{gone:,} of {len(stored):,} documents give other tokens")
    return Link("documents", at, EQUAL, f"{len(stored):,} documents give the same tokens again")


def activations(lake: Lake, records: Records, layer: int, neurons: Sequence[int], outside: Outside) -> Link:
    """Whether the model does again what the records of some neurons say."""
    at = ", ".join(f"{layer}:{neuron}" for neuron in neurons)
    record = records.last("activations", layer)
    if record is None:
        return Link("activations", at, NOT_CHECKED, "no record of the activations")
    if outside.subject is None:
        return Link("activations", at, NOT_CHECKED, outside.why.get("subject", "the model is not at hand"))
    made, now = json.loads(record["environment"]).get("subject", {}), outside.subject.provenance()
    if made.get("dtype") != now["dtype"]:
        said = f"they were computed in {made.get('dtype')}, which is not comparable with {now['dtype']}"
        return Link("activations", at, NOT_CHECKED, said)
    other = [name for name in SAME if made.get(name) != now.get(name)]
    if other and now["dtype"] != "float32":
        said = f"{', '.join(other)} differ from when they were made, and in {now['dtype']} this cannot be compared"
        return Link("activations", at, NOT_CHECKED, said)
    stored = lake.read("activations", layer=layer, neurons=neurons)
    tokens = dict(lake.read("sequences").select("sequence_id", "token_ids").iter_rows())
    again = _run_again(outside.subject, tokens, layer, stored)
    strongest = collect(
        lake.scan("neuron_statistics", layer=layer).select(
            pl.max_horizontal(pl.col("maximum").abs(), pl.col("minimum").abs()).max()
        )
    ).item()
    wrong: dict[int, str] = {}
    worst = 0.0
    for row in stored.iter_rows(named=True):
        values = again[row["sequence_id"]][:, list(neurons).index(row["neuron"])].astype(np.float64)
        kept = np.asarray(row["activations"], dtype=np.float64)
        # The peak of `random` records in polarity `-` is that of the rounded activations.
        rounded_peak = row["polarity"] == "-" and row["stratum"] == "random"
        allowed = TOLERANCE * float(strongest) if other else 0.0
        half_step = float(np.ldexp(0.5, int(np.frexp(np.abs(values).max())[1]) - STEPS))
        off = np.abs(values - kept).max()
        peak = float(values.max() if row["polarity"] == "+" else values.min())
        peak_off = abs(peak - row["peak"])
        worst = max(worst, peak_off if not rounded_peak else 0.0)
        if off > half_step + allowed or peak_off > allowed + (half_step if rounded_peak else 0.0):
            wrong.setdefault(row["neuron"], (
                f"{layer}:{row['neuron']} record {row['stratum']} {row['rank']} has the peak {row['peak']:.9g}, and "
                f"{peak:.9g} comes out; its activations differ by up to {off:.3g}"
            ))  # fmt: skip
    if wrong:
        return Link("activations", at, DIFFERS, next(iter(wrong.values())), tuple(sorted(wrong)))
    how = f"within {TOLERANCE:g} of the strongest of the layer ({', '.join(other)} differ)" if other else "to the bit"
    said = f"{len(stored):,} records of {len(neurons):,} neurons come out again {how}; the largest difference of a peak is {worst:.3g}"
    return Link("activations", at, EQUAL, said)


def ablations(lake: Lake, records: Records, layer: int, neurons: Sequence[int], outside: Outside) -> Link:
    """Whether the model does the same again with simulations in the place of some neurons."""
    at = ", ".join(f"{layer}:{neuron}" for neuron in neurons)
    if outside.subject is None:
        return Link("ablations", at, NOT_CHECKED, outside.why.get("subject", "the model is not at hand"))
    now, rows = outside.subject.provenance(), 0
    for neuron in neurons:
        record = records.last("ablations", layer, neuron) or {"environment": "{}"}
        made = json.loads(record["environment"]).get("subject")
        other = [name for name in SAME if made is not None and made.get(name) != now.get(name)]
        if other:
            said = (
                f"{', '.join(other)} differ from when they were made, and divergences only come out to the bit without"
            )
            return Link("ablations", at, NOT_CHECKED, said)
        found = replay(lake, records, "ablations", layer, neuron, subject=outside.subject)
        if found.outcome != "equal":
            return _replayed(found, at)
        rows += found.rows
    return Link("ablations", at, EQUAL, f"{rows:,} divergences of next-token probabilities come out again to the bit")


def _run_again(
    subject: SubjectModel, tokens: Mapping[str, Sequence[int]], layer: int, stored: pl.DataFrame
) -> dict[str, np.ndarray]:
    """For each sequence of some records what their neurons do on it: (token, neuron), in the order of their indices."""
    neurons = sorted(set(stored.get_column("neuron")))
    by_length: dict[int, list[str]] = {}
    for sequence_id in sorted(set(stored.get_column("sequence_id"))):
        by_length.setdefault(len(tokens[sequence_id]), []).append(sequence_id)
    batches = list(by_length.values())
    found: dict[str, np.ndarray] = {}
    waiting = iter(batches)
    current: list[str] = []

    def asked() -> Any:
        for batch in waiting:
            current[:] = batch
            yield [tokens[sequence_id] for sequence_id in batch]

    def receive(_: int, rows: slice, values: Any) -> None:
        picked = values[:, :, neurons].float().cpu().numpy()
        found.update(zip(current[rows], picked, strict=True))

    subject.capture(asked(), [layer], receive)
    return found


def _replayed(found: Replayed, at: str) -> Link:
    outcome = {"equal": EQUAL, "differs": DIFFERS, "not replayed": NOT_CHECKED}[found.outcome]
    said = found.said or f"{found.rows:,} rows of `{found.table}` come out again to the bit"
    return Link(found.table, at, outcome, said, found.neurons)
