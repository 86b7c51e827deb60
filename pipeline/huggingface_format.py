"""A dataset for the Hugging Face hub: Parquet by table, a card that says what it is, and its description in Croissant.

    data/{table}/layer-05-000.parquet    the rows of some neurons of one layer; `data/{table}/000.parquet` without layers
    README.md                            the card: YAML for the hub, then method, splits, failures and limits in words
    croissant.json                       MLCommons Croissant 1.0: every file with its hash, every column with its meaning

`datasets.load_dataset(folder, "scores")` reads one table; the hub's own viewer does too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.summary import MAIN
from pipeline.tables import MISSING, TABLES

PUBLISHED = (
    "scores", "explanations", "simulations", "exemplars", "activations", "neuron_statistics", "token_associations",
    "connections", "subject_layers", "sequences", "vocabulary", "language_calls",
)  # fmt: skip
"""Tables in the order of the card; the first is the one that the hub shows."""
LEFT_OUT = {"language_calls": ("endpoint", "error")}
"""Columns that may name machines of whoever ran it."""
NOT_CARRIED = (
    "endpoints that were asked, and their error messages",
    "the records of each write (`materializations`), which name machines; every row keeps its identity and run",
    "earlier versions of the tables",
)
CROISSANT = "http://mlcommons.org/croissant/1.0"
CITED = "Bills et al. 2023, Language models can explain neurons in language models (the method)"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The terms that Croissant 1.0 prescribes."""


def columns(table: str) -> list[str]:
    """The columns of a table that are published."""
    return [name for name in TABLES[table].columns if name not in LEFT_OUT.get(table, ())]


def failures(explanations: pl.DataFrame, simulations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """How much is missing of each hop, by method or simulator, and why: `hop`, `by`, `rows`, `missing`, `reasons`.

    The frames need the columns that are counted, and may be lazy reads of them.
    """
    frames = []
    for hop, rows, by in (
        ("explanations", explanations, "method"), ("simulations", simulations, "simulator"), ("scores", scores, "scorer")
    ):  # fmt: skip
        counted = rows.group_by(by, "missing_because").len()
        frames.append(
            counted.group_by(pl.col(by).alias("by"))
            .agg(
                pl.col("len").sum().alias("rows"),
                pl.col("len").filter(pl.col("missing_because").is_not_null()).sum().alias("missing"),
                pl.struct("missing_because", "len").filter(pl.col("missing_because").is_not_null()).alias("reasons"),
            )
            .select(pl.lit(hop).alias("hop"), "by", "rows", "missing", "reasons")
            .sort("by")
        )
    return pl.concat(frames)


def summary(scores: pl.DataFrame) -> pl.DataFrame:
    """The median and the share above one half of the main score, by method."""
    main = scores.filter(MAIN & pl.col("value").is_not_null())
    return (
        main.group_by("method")
        .agg(
            pl.len().alias("n"), pl.col("value").median().alias("median"), (pl.col("value") > 0.5).mean().alias("above")
        )
        .sort("method")
    )


def card(
    *,
    about: Mapping[str, Any],
    name: str,
    licence: str,
    rows: Mapping[str, int],
    splits: Mapping[str, int],
    missing: pl.DataFrame,
    medians: pl.DataFrame,
) -> str:
    """The text of README.md. `rows` says how many each table has, `splits` how many sequences."""
    subject = str(about["subject"])
    lines = [
        "---",
        f"pretty_name: {_quoted(name)}",
        f"license: {_quoted(licence)}",
        "tags: [mechanistic-interpretability, auto-interpretability, neurons]",
        "configs:",
    ]
    for place, table in enumerate(rows):
        lines += [f"- config_name: {table}", *(["  default: true"] if not place else [])]
        lines += ["  data_files:", "  - split: train", f"    path: data/{table}/*.parquet"]
    lines += [
        "---",
        f"# {name}",
        "",
        f"What the neurons of `{subject}` do, said in words, and how well the words predict it. Made with Neuron Ledger.",
        "",
        "## How it was made",
        "",
        "A neuron is the input of the MLP's output projection. Its strongest texts are shown to an explainer; a simulator",
        "reads the explanation alone and predicts the neuron on texts that the explainer never saw; a score compares the",
        "prediction with the truth (Bills et al. 2023, Language models can explain neurons in language models). Documents",
        "are split before anything is read, so no scored text was shown.",
        "",
        *(
            f"- {key.replace('_', ' ')}: {_inline(value)}"
            for key, value in about["conventions"].items()
            if key != "site"
        ),
        f"- sites: {_inline(sorted(set(about['conventions']['site'].values()))[:3])}",
        f"- layers: {', '.join(map(str, about['layers']))}",
        *(f"- explainer: {_inline(value)}" for value in about.get("explainers", ())),
        *(f"- simulator: {_inline(value)}" for value in about.get("simulators", ())),
        "",
        "## Splits",
        "",
        "The hub's split `train` is everything. Documents have a split of their own, in `sequences.split`:",
        "",
        *(f"- `{split}`: {count:,} sequences" for split, count in splits.items()),
        "",
        "## Tables",
        "",
        "| table | rows | one row |",
        "|---|---|---|",
        *(f"| `{table}` | {count:,} | {TABLES[table].doc} |" for table, count in rows.items()),
        "",
        "## Scores",
        "",
        "Correlation with the true activations over the strongest and the random texts together (`ev_correlation`,",
        "`top_and_random`). Read an explanation beside `token-lookup`, the mean activation on each token, which needs no words.",
        "",
        "| method | scored | median | above 0.5 |",
        "|---|---|---|---|",
        *(
            f"| {row['method']} | {row['n']:,} | {row['median']:.3f} | {row['above']:.1%} |"
            for row in medians.to_dicts()
        ),
        "",
        "## What is missing",
        "",
        "A failure is a null with a reason, never a number.",
        "",
        "| of | by | rows | missing | why |",
        "|---|---|---|---|---|",
    ]
    for row in missing.to_dicts():
        why = "; ".join(f"{MISSING[one['missing_because']]} ({one['len']:,})" for one in sorted(
            row["reasons"], key=lambda one: (-one["len"], one["missing_because"])))  # fmt: skip
        lines.append(
            f"| {row['hop']} | {_cell(row['by'])} | {row['rows']:,} | {row['missing'] / row['rows']:.1%} | {why} |"
        )
    lines += [
        "",
        "## Limits",
        "",
        "- An explanation says when a neuron is active, not what it causes. High scores can come from one frequent token.",
        "- Scores are of this corpus and of windows of its length; ten sequences leave wide intervals (`ci_low`, `ci_high`).",
        f"- Licence: {licence}. It is that of these tables; texts in `sequences` keep the licence of the corpus, and the",
        "  subject model and the language models that explained have terms of their own.",
        *(f"- Not in here: {line}." for line in NOT_CARRIED),
        "",
        "## To read it",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'scores = load_dataset("path/of/this/dataset", "scores", split="train")',
        "```",
        "",
    ]
    return "\n".join(lines)


def croissant(
    *, about: Mapping[str, Any], name: str, licence: str, version: str, files: Sequence[tuple[str, str, str, int]]
) -> dict[str, Any]:
    """The Croissant description. `files` are (table, path, sha256 in hex, bytes), in order."""
    tables = list(dict.fromkeys(table for table, *_ in files))
    objects = [
        {
            "@type": "cr:FileObject", "@id": path, "name": path, "contentUrl": path, "contentSize": f"{size} B",
            "encodingFormat": "application/x-parquet", "sha256": digest,
        }
        for _, path, digest, size in files
    ]  # fmt: skip
    sets = [
        {
            "@type": "cr:FileSet", "@id": f"{table}-files", "name": f"{table}-files",
            "encodingFormat": "application/x-parquet", "includes": f"data/{table}/*.parquet",
        }
        for table in tables
    ]  # fmt: skip
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": name,
        "description": f"What the neurons of {about['subject']} do, in words, and how well the words predict it.",
        "license": licence,
        "citeAs": CITED,
        "version": version,
        **({"datePublished": about["date"]} if about.get("date") else {}),
        "distribution": objects + sets,
        "recordSet": [_records(table) for table in tables],
    }


def _records(table: str) -> dict[str, Any]:
    fields = []
    for name in columns(table):
        column = TABLES[table].columns[name]
        kind, repeated = column.type, False
        while isinstance(kind, pl.List):
            kind, repeated = kind.inner, True  # type: ignore[assignment]
        fields.append(
            {
                "@type": "cr:Field", "@id": f"{table}/{name}", "name": f"{table}/{name}", "description": column.doc,
                "dataType": _data_type(kind), **({"repeated": True} if repeated else {}),
                "source": {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": name}},
            }
        )  # fmt: skip
    return {"@type": "cr:RecordSet", "@id": table, "name": table, "description": TABLES[table].doc, "field": fields}


def _data_type(kind: Any) -> str:
    if kind == pl.Boolean:
        return "sc:Boolean"
    if kind.is_integer():
        return "sc:Integer"
    if kind.is_float():
        return "sc:Float"
    return "sc:DateTime" if kind == pl.Datetime("us", "UTC") else "sc:Text"


def _quoted(text: str) -> str:
    """Text as YAML in double quotes, which is JSON's way."""
    return json.dumps(text)


def _inline(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else (
        ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)
    )  # fmt: skip
    return _cell(text)


def _cell(text: str) -> str:
    """Text that can be no markup: what is not a letter, digit or plain sign is escaped."""
    safe = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in safe)
