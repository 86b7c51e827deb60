"""Why: the one chain from a score to the bytes that it came from, as data and as sentences.

score <- simulations <- explanation <- request and reply <- exemplars <- activations <- model and text
                                                                            each write <- its file, in the ledger

A score by judges (`detection`, `fuzzing`) is made from judgements in place of simulations, and one by `ablation` from
ablations, which are made from simulations.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from explorer.replay import Records
from pipeline.errors import NeuronLedgerError
from pipeline.provenance import TAG
from pipeline.scorers import ABLATION, ASKED
from pipeline.summary import MAIN
from pipeline.tables import MISSING
from resources.delta import DeltaLake, collect


@dataclass(frozen=True)
class Hop:
    """One hop of the chain: a sentence for people, and the facts behind it."""

    name: str
    says: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def find(lake: DeltaLake, name: str, *, layer: int | None = None, neuron: int | None = None) -> dict[str, Any]:
    """The row of a score: by its identity or the first eight or more digits of it, or the main score of a neuron.

    Raises:
        NeuronLedgerError: there is no such score, or there are several that begin so.
    """
    if layer is not None and neuron is not None:
        rows = lake.read("scores", layer=layer, neurons=[neuron])
        main = rows.filter(MAIN).sort("value", descending=True, nulls_last=True)
        rows = main if len(main) else rows
        if rows.is_empty():
            raise NeuronLedgerError(f"neuron {layer}:{neuron} has no score in the lake {lake.uri}")
        return rows.row(0, named=True)
    digits = name.removeprefix(TAG)
    if not re.fullmatch(r"[0-9a-f]{8,64}", digits):
        raise NeuronLedgerError(
            f"{name!r} is no score; give its identity (`neuronledger show L:N --json` has it), eight digits of it or more, "
            "or a neuron such as 5:131"
        )
    found = collect(lake.scan("scores").filter(pl.col("identity").str.starts_with(TAG + digits)))
    if found.is_empty():
        raise NeuronLedgerError(f"no score of the lake {lake.uri} has the identity {name}")
    if found.get_column("identity").n_unique() > 1:
        raise NeuronLedgerError(f"{found.get_column('identity').n_unique()} scores begin with {name}; give more digits")
    return found.sort("layer", "neuron", "explanation_id").row(0, named=True)


def why(lake: DeltaLake, score: Mapping[str, Any]) -> list[Hop]:
    """The chain of one score, from it back to files. What the lake does not have is said in its place."""
    layer, neuron = score["layer"], score["neuron"]
    at: dict[str, Any] = {"layer": layer, "neurons": [neuron]}
    records = Records(lake)
    explanation = _one(lake.read("explanations", **at), pl.col("explanation_id") == score["explanation_id"])
    judged = ASKED.get(score["scorer"])
    answers = _simulations(lake, score) if judged is None else _judgements(lake, score, judged)
    replaced = _ablations(lake, score) if score["scorer"] == ABLATION else None
    fitted = [] if replaced is None else _asked_for(replaced)
    asked = _asked_for(answers)
    exemplars = lake.read("exemplars", **at).filter(pl.col("polarity") == score["polarity"])
    shown_ids = list(explanation["exemplar_ids"]) if explanation else []
    shown = exemplars.filter(pl.col("exemplar_id").is_in(shown_ids))
    scored = _scored_texts(answers, exemplars)
    sequences = _sequences(lake, [*shown.get_column("sequence_id"), *scored.get_column("sequence_id")])
    calls = _calls(lake, [*asked, *fitted, *_request(explanation)])
    hops = [
        _score(score, explanation),
        *([] if replaced is None else [_replaced(replaced, calls.filter(pl.col("request_id").is_in(fitted)))]),
        _answers(score, answers, calls.filter(pl.col("request_id").is_in(asked))),
        _said(explanation, calls),
        _texts(shown, scored, sequences),
        _corpus(records, sequences),
        _model(lake, records, layer),
    ]
    tables = ["simulations" if judged is None else "judgements", *(["ablations"] if replaced is not None else [])]
    return [*hops, *_writes(lake, records, layer, neuron, answers=tables), _bytes(lake, score)]


def as_text(hops: Sequence[Hop]) -> str:
    """The chain as paragraphs."""
    return "\n".join(hop.says for hop in hops)


def _score(score: Mapping[str, Any], explanation: Mapping[str, Any] | None) -> Hop:
    what = f"{score['scorer']} (formula {score['formula_version']}) on {score['split']}"
    name = f"{score['layer']}:{score['neuron']}{'' if score['polarity'] == '+' else ' on its negative side'}"
    if score["value"] is None:
        says = f"Neuron {name} has no {what}, because {MISSING.get(score['missing_because'], 'unknown')}."
    else:
        between = ""
        if score["ci_low"] is not None:
            between = f", between {score['ci_low']:.3f} and {score['ci_high']:.3f} in 95 of 100 resamples of its texts"
        says = f"Neuron {name} has the score {score['value']:.6f} by {what}{between}."
    words = explanation["text"] if explanation else None
    says += f" It is that of the words: {words!r}." if words else ""
    keys = (
        "layer",
        "neuron",
        "identity",
        "explanation_id",
        "simulator",
        "method",
        "run_id",
        "n_sequences",
        "n_tokens",
        "n_failed",
    )
    return Hop("score", says, {name: score[name] for name in ("value", "ci_low", "ci_high", "missing_because", *keys)})


def _answers(score: Mapping[str, Any], answers: pl.DataFrame, asked: pl.DataFrame) -> Hop:
    is_judged = "exemplar_id" not in answers.columns
    missing = answers.get_column("value" if is_judged else "expected").null_count()
    what = "judgements" if is_judged else f"simulations of {score['n_tokens']:,} tokens"
    says = (
        f"It was computed from {len(answers):,} {what} by {score['simulator']}"
        f"{f', {missing:,} of which are missing' if missing else ''}."
    )
    says += _asked(asked) if len(asked) else " No language model was asked for them."
    name = "judgements" if is_judged else "simulations"
    rows = answers.select("sequence_id" if is_judged else "exemplar_id", "identity").to_dicts()
    return Hop(name, says, {name: rows, "requests": _told(asked)})


def _replaced(rows: pl.DataFrame, asked: pl.DataFrame) -> Hop:
    known = rows.drop_nulls("divergence")
    says = f"For it the subject read {len(known):,} texts with the simulation in the neuron's place, and with its mean."
    if len(known):
        slope, intercept = known.row(0, named=True)["slope"], known.row(0, named=True)["intercept"]
        says += (
            f" The line from simulation to neuron ({intercept:.4g} + {slope:.4g} times it) was fitted on texts of split"
        )
        says += " `calibrate`." + (_asked(asked) if len(asked) else "")
    names = ("exemplar_id", "divergence", "mean_divergence", "missing_because", "slope", "intercept", "identity")
    return Hop("ablations", says, {"ablations": rows.select(names).to_dicts(), "requests": _told(asked)})


def _said(explanation: Mapping[str, Any] | None, calls: pl.DataFrame) -> Hop:
    if explanation is None:
        return Hop("explanation", "The explanation is not in the lake any more.")
    asked = calls.filter(pl.col("request_id").is_in(_request(explanation)))
    says = f"The words were made by the method {explanation['method']}"
    if explanation["explainer"] == "none":
        says += ", from the neuron's table of tokens, without a language model."
    else:
        prompt = f", with the prompt {explanation['prompt_hash']}" if explanation["prompt_hash"] else ""
        says += f", by {explanation['explainer']}{prompt}."
        says += _asked(asked) if len(asked) else ""
    facts = {
        name: explanation[name] for name in ("identity", "text", "method", "explainer", "prompt_hash", "request_id")
    }
    return Hop("explanation", says, facts | {"requests": _told(asked)})


def _texts(shown: pl.DataFrame, scored: pl.DataFrame, sequences: pl.DataFrame) -> Hop:
    both = set(shown.get_column("sequence_id")) & set(scored.get_column("sequence_id"))
    says = f"{_count(len(shown), 'text was', 'texts were')} shown to whoever found them, and {len(scored):,} others scored."
    if both:
        says = f"{len(shown):,} texts were shown and {len(scored):,} scored, and {len(both):,} OF THEM ARE THE SAME."
    documents = dict(sequences.select("sequence_id", "document_id").iter_rows())
    rows = [
        {"exemplar_id": row["exemplar_id"], "split": row["split"], "stratum": row["stratum"], "rank": row["rank"],
         "sequence_id": row["sequence_id"], "document_id": documents.get(row["sequence_id"]), "identity": row["identity"]}
        for frame in (shown, scored) for row in frame.iter_rows(named=True)
    ]  # fmt: skip
    return Hop("exemplars", says, {"exemplars": rows})


def _corpus(records: Records, sequences: pl.DataFrame) -> Hop:
    record = records.last("sequences", None)
    made = json.loads(record["environment"]).get("corpus", {}) if record else {}
    names = sequences.get_column("document_id").to_list()
    says = f"They are from {_count(sequences.get_column('document_hash').n_unique(), 'document', 'documents')}"
    says += f", such as {names[0]}" if names else ""
    says += (
        f", of the corpus {made.get('name', made.get('source', 'unknown'))!r}."
        if made
        else "; the corpus is not recorded."
    )
    rows = sequences.select("sequence_id", "document_id", "document_hash", "split", "offset", "identity").to_dicts()
    return Hop("documents", says, {"documents": rows, "corpus": made})


def _model(lake: DeltaLake, records: Records, layer: int) -> Hop:
    record = records.last("activations", layer)
    made = json.loads(record["environment"]).get("subject", {}) if record else {}
    site = lake.read("subject_layers", layer=layer)
    fingerprint = site.item(0, "fingerprint") if len(site) else "unknown"
    files = made.get("files", {})
    weights = [f"{name} ({file['hash']})" for name, file in files.items() if name.endswith(".safetensors")]
    says = f"What the neuron does on them was computed by {made.get('name', 'an unrecorded model')!r}"
    says += f" in {made.get('dtype')} on {made.get('device')}, torch {made.get('torch')}" if made else ""
    says += f", from {', '.join(weights)}" if weights else ""
    says += f". The weights that reach layer {layer} have the fingerprint {fingerprint}."
    return Hop("model", says, {"fingerprint": fingerprint, "subject": made})


def _writes(lake: DeltaLake, records: Records, layer: int, neuron: int, *, answers: Sequence[str]) -> list[Hop]:
    """For each table of the chain the write that this neuron's rows are from."""
    sealed = _sealed(lake)
    hops = []
    for table in ("sequences", "activations", "exemplars", "explanations", *answers, "scores"):
        record = records.last(table, None if table == "sequences" else layer, neuron)
        if record is None:
            hops.append(Hop(f"write of {table}", f"There is no record of a write of {table}."))
            continue
        code = json.loads(record["code"])
        line = sealed.get((table, record["version"]))
        how = "alone" if record["neurons"] is not None else "with all others"
        commit = code.get("git_commit", "unknown")
        says = (
            f"Its {table} were written {how} on {record['finished_at']:%Y-%m-%d %H:%M} UTC by run {record['run_id']}, by version "
            f"{code.get('package')} of the code (commit {commit[:12]}{', changed' if code.get('changed') is True else ''}), "
            f"as version {record['version']} of the table"
        )
        says += f", line {line['seq']} of the ledger." if line else ", which is not in a ledger."
        if origin := json.loads(record["environment"]).get("restored"):
            says += f" They were put back from version {origin['version']}, which run {origin['run_id']} had made from the same inputs."
        facts = {name: record[name] for name in ("run_id", "commit_uuid", "version", "step_key", "content_hash")}
        facts |= {name: json.loads(record[name]) for name in ("inputs", "settings", "code")}
        hops.append(Hop(f"write of {table}", says, facts | {"ledger_line": line}))
    return hops


def _bytes(lake: DeltaLake, score: Mapping[str, Any]) -> Hop:
    """The file that holds the row of the score, and the hash that the ledger has of it."""
    inside = (pl.col("identity") == score["identity"]) & (pl.col("neuron") == score["neuron"])
    files = lake.files("scores", layer=score["layer"])
    file = next((path for path in files if len(collect(pl.scan_parquet(path).filter(inside).head(1)))), None)
    if file is None:
        return Hop("bytes", "The file of the score is gone.")
    name = file.removeprefix(f"{lake.uri}/scores/")
    hashed = next(
        (line["files"][name] for (table, _), line in _sealed(lake).items() if table == "scores" and name in line["files"]), None
    )  # fmt: skip
    says = f"The row stands in {Path('scores') / name}"
    says += f", whose bytes have the hash {hashed} by the ledger." if hashed else ", which the ledger does not have."
    return Hop("bytes", says, {"file": name, "hash": hashed})


def _sealed(lake: DeltaLake) -> dict[tuple[str, int], dict[str, Any]]:
    if lake.ledger is None:
        return {}
    lines = (line for line, _ in lake.ledger.lines() if line is not None and line.at is not None)
    return {line.at: {**line.content, "hash": line.hash} for line in lines if line.at is not None}


def _simulations(lake: DeltaLake, score: Mapping[str, Any]) -> pl.DataFrame:
    rows = lake.read("simulations", layer=score["layer"], neurons=[score["neuron"]]).filter(
        (pl.col("explanation_id") == score["explanation_id"]) & (pl.col("simulator") == score["simulator"])
    )
    return rows.filter(pl.col("stratum") == "random") if score["split"] == "random_only" else rows


def _ablations(lake: DeltaLake, score: Mapping[str, Any]) -> pl.DataFrame:
    rows = lake.read("ablations", layer=score["layer"], neurons=[score["neuron"]]).filter(
        (pl.col("explanation_id") == score["explanation_id"]) & (pl.col("simulator") == score["simulator"])
    )
    return rows.filter(pl.col("stratum") == "random") if score["split"] == "random_only" else rows


def _judgements(lake: DeltaLake, score: Mapping[str, Any], scorer: str) -> pl.DataFrame:
    return lake.read("judgements", layer=score["layer"], neurons=[score["neuron"]]).filter(
        (pl.col("explanation_id") == score["explanation_id"])
        & (pl.col("scorer") == scorer)
        & (pl.col("judge") == score["simulator"])
    )


def _asked_for(answers: pl.DataFrame) -> list[str]:
    """The requests that simulations or judgements were read from."""
    if "request_id" in answers.columns:
        further = answers.get_column("other_request_ids").explode().drop_nulls()
        return [*answers.get_column("request_id"), *further.unique(maintain_order=True)]
    return answers.get_column("request_ids").explode().drop_nulls().to_list()


def _scored_texts(answers: pl.DataFrame, exemplars: pl.DataFrame) -> pl.DataFrame:
    """The texts that simulations or judgements are of, with the columns of `exemplars` that are told of."""
    if "exemplar_id" in answers.columns:
        return exemplars.filter(pl.col("exemplar_id").is_in(answers.get_column("exemplar_id").to_list()))
    return answers.unique("sequence_id", maintain_order=True).select(
        "sequence_id",
        "stratum",
        pl.lit(None, pl.String).alias("exemplar_id"),
        pl.lit("score").alias("split"),
        pl.col("item").alias("rank"),
        pl.lit(None, pl.String).alias("identity"),
    )


def _sequences(lake: DeltaLake, names: Sequence[str]) -> pl.DataFrame:
    return collect(lake.scan("sequences").filter(pl.col("sequence_id").is_in(list(set(names))))).sort("sequence_id")


def _request(explanation: Mapping[str, Any] | None) -> list[str]:
    if not explanation or not explanation["request_id"]:
        return []
    return [explanation["request_id"], *(explanation["other_request_ids"] or ())]


def _calls(lake: DeltaLake, request_ids: Sequence[str]) -> pl.DataFrame:
    return collect(lake.scan("language_calls").filter(pl.col("request_id").is_in(list(set(request_ids)))))


def _asked(calls: pl.DataFrame) -> str:
    models = sorted(set(calls.get_column("model")))
    served = sorted(set(calls.get_column("model_served").drop_nulls()))
    endpoints = sorted(set(calls.get_column("endpoint")))
    others = f" (it answered as {', '.join(served)})" if served and served != models else ""
    return (
        f" {_count(len(calls), 'request', 'requests')} to {', '.join(models)} at {', '.join(endpoints)}{others} "
        f"and the replies are kept word for word, the first of them {calls.item(0, 'request_id')}."
    )


def _told(calls: pl.DataFrame) -> list[dict[str, Any]]:
    return calls.select(
        "request_id", "endpoint", "model", "model_served", "request", "reply", "finish_reason", pl.col("answered_at").cast(pl.String)
    ).to_dicts()  # fmt: skip


def _one(rows: pl.DataFrame, which: pl.Expr) -> dict[str, Any] | None:
    found = rows.filter(which)
    return None if found.is_empty() else found.row(0, named=True)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
