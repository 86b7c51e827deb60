"""A bundle for auditors: one folder with the tables, the ledger, the provenance of chosen scores, and the means to check them.

    manifest.json             the hash of every file, and the head of the ledger
    verify.py                 checks all that with Python's standard library alone
    ro-crate-metadata.json    what is in the folder, as an RO-Crate (https://w3id.org/ro/crate)
    prov.json                 the chains of the chosen scores, as W3C PROV-JSON
    why/5-131.txt, .json      the same chains in sentences, and with all facts
    openlineage.jsonl         one OpenLineage event for each finished write
    audit.json                what an audit found, and what it did not check
    ledger/, tables/          the ledger, the commits, and the data files that they name

PROV, RO-Crate and OpenLineage are written by the libraries of the extra `audit`. The lake is named by the last part of its
folder; the whole of it stands only in the first commit of each table, where Delta put it and the ledger sealed it.
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from explorer import offline
from explorer.why import Hop, as_text, why
from pipeline.audit import Audit
from pipeline.errors import SettingsError
from pipeline.provenance import TAG
from pipeline.records import read as records_of
from pipeline.summary import MAIN
from resources import signature
from resources.delta import DeltaLake, collect
from resources.export_folder import ExportFolder
from resources.integrity import read_logs
from resources.ledger import LOG, hash_file

LIBRARIES = ("openlineage", "prov", "rocrate")
SPACE = "urn:neuronledger:"
BEST = 1
"""Scores of each layer whose chain is told unless others are named."""


def best_scores(lake: DeltaLake) -> list[dict[str, Any]]:
    """The best score of each layer."""
    rows = collect(lake.scan("scores").filter(MAIN & pl.col("value").is_not_null()))
    best = rows.sort("value", "neuron", descending=[True, False]).group_by("layer", maintain_order=True).head(BEST)
    return best.sort("layer").to_dicts()


def bundle(
    lake: DeltaLake, out: ExportFolder, scores: Sequence[Mapping[str, Any]], found: Audit, *, data: bool = True
) -> dict[str, Any]:
    """Write the bundle of a lake; the chains of `scores` are told, and data files are left out without `data`.

    Raises:
        SettingsError: a library of the extra `audit` is missing.
    """
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise SettingsError(
            f"`export prov` needs {', '.join(missing)}; install them with: pip install 'neuronledger[audit]'"
        )
    assert lake.ledger is not None  # noqa: S101 - for the type checker: a lake that is opened has one
    files, name = lake.ledger.files, lake.uri.rpartition("/")[2]
    chains: dict[str, Sequence[Hop]] = {}
    for row in scores:
        at = f"{row['layer']}-{row['neuron']}"
        chains[f"{at}-{row['identity'].removeprefix(TAG)[:8]}" if at in chains else at] = why(lake, row)
    records = records_of(lake).filter(pl.col("status") == "done").sort("finished_at", "commit_uuid")
    for at, hops in chains.items():
        out.write(f"why/{at}.txt", (as_text(hops) + "\n").encode())
        out.write(f"why/{at}.json", _json([asdict(hop) for hop in hops]))
    out.write("prov.json", provenance(chains).encode())
    out.write("openlineage.jsonl", "".join(f"{line}\n" for line in lineage(records, name)).encode())
    checks = [{**asdict(check), "says": check.says, "outcome": check.outcome} for check in found.checks]
    out.write("audit.json", _json({"lake": name, "head": found.head, "findings": found.findings, "checks": checks}))
    lines = [raw for _, raw in lake.ledger.lines()]
    if lines:
        # As in a folder, wherever it was: one file, a line for each commit.
        out.write("ledger/ledger.jsonl", b"".join(raw + b"\n" for raw in lines))
        for signed, raw in signature.kept(files).items():
            out.write(f"ledger/signatures/{signed.removeprefix(TAG)}.sig", raw)
    logs = read_logs(lake)
    for log in logs:
        live = [f"{log.table}/{file}" for file in log.live] if data else []
        for file in sorted([*files.names(f"{log.table}/{LOG}"), *live]):
            out.write(f"tables/{file}", files.read(file))
    out.write("verify.py", Path(offline.__file__).read_bytes())
    out.write("README.md", _readme(name, found, chains, data=data).encode())
    folder = out.place("manifest.json").parent
    when = max(records.get_column("finished_at").to_list(), default=None)
    crate(folder, name, [log.table for log in logs], when.isoformat() if when else None)
    hashes = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".neuronledger-export"
    }  # fmt: skip
    head = lake.ledger.head()
    out.write("manifest.json", _json({"lake": name, "head": head, "files": hashes}))
    return {"lake": name, "head": head, "scores": list(chains), "n_files": len(hashes) + 1}


def provenance(chains: Mapping[str, Sequence[Hop]]) -> str:
    """The chains as PROV-JSON: what was derived from what, by which activity, and who was responsible."""
    from prov.model import ProvDocument

    document = ProvDocument()
    document.add_namespace("nl", SPACE)

    def entity(kind: str, key: str, **facts: Any) -> str:
        known: Any = {f"nl:{name}": _plain(value) for name, value in facts.items() if value is not None}
        document.entity(f"nl:{kind}-{_id(key)}", {"prov:type": f"nl:{kind}", **known})
        return f"nl:{kind}-{_id(key)}"

    for at, hops in chains.items():
        facts: dict[str, Mapping[str, Any]] = {hop.name: hop.facts for hop in hops}
        score, words = facts["score"], facts["explanation"]
        answers = "simulations" if "simulations" in facts else "judgements"
        neuron = f"{score['layer']}:{score['neuron']}"
        scored = entity("score", score["identity"], neuron=neuron, value=score["value"], identity=score["identity"])
        said = entity("explanation", words.get("identity", at), text=words.get("text"), identity=words.get("identity"))
        document.wasDerivedFrom(scored, said)
        exemplars = {row["exemplar_id"]: row for row in facts["exemplars"]["exemplars"] if row["exemplar_id"]}
        sequences = {row["sequence_id"]: row for row in facts["documents"]["documents"]}
        texts = {}
        for name, text in sequences.items():
            texts[name] = entity("sequence", text["identity"], identity=text["identity"], offset=text["offset"])
            source = entity("document", text["document_hash"], name=text["document_id"], hash=text["document_hash"])
            document.wasDerivedFrom(texts[name], source)
        model = entity("subject", facts["model"]["fingerprint"], fingerprint=facts["model"]["fingerprint"])
        for file, about in facts["model"]["subject"].get("files", {}).items():
            document.wasDerivedFrom(model, entity("file", about["hash"], name=file, hash=about["hash"]))
        for row in exemplars.values():
            shown = entity("exemplar", row["identity"], identity=row["identity"], split=row["split"])
            document.wasDerivedFrom(shown, model)
            if row["split"] == "explain":
                document.wasDerivedFrom(said, shown)
            if row["sequence_id"] in texts:
                document.wasDerivedFrom(shown, texts[row["sequence_id"]])
        for row in facts[answers][answers]:
            answer = entity(answers.removesuffix("s"), row["identity"], identity=row["identity"])
            document.wasDerivedFrom(scored, answer)
            document.wasDerivedFrom(answer, said)
            if row.get("exemplar_id") in exemplars:
                document.wasDerivedFrom(answer, f"nl:exemplar-{_id(exemplars[row['exemplar_id']]['identity'])}")
            elif row.get("sequence_id") in texts:
                document.wasDerivedFrom(answer, texts[row["sequence_id"]])
        for row in facts.get("ablations", {}).get("ablations", ()):
            replaced = entity("ablation", row["identity"], identity=row["identity"], divergence=row["divergence"])
            document.wasDerivedFrom(scored, replaced)
            document.wasDerivedFrom(replaced, model)
            document.wasDerivedFrom(replaced, said)
        further = facts.get("ablations", {}).get("requests", ())
        for call in (*words.get("requests", ()), *facts[answers]["requests"], *further):
            reply = entity("reply", call["request_id"], request=call["request_id"], text=call["reply"])
            agent = f"nl:language-model-{_id(str(call['model_served'] or call['model']))}"
            document.agent(agent, {"prov:type": "prov:SoftwareAgent", "nl:name": call["model_served"] or call["model"]})
            document.wasAttributedTo(reply, agent)
            document.wasDerivedFrom(said if call in words.get("requests", ()) else scored, reply)
        _activities(document, scored, facts)
    return str(document.unified().serialize(indent=1))


def _activities(document: Any, scored: str, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """The write of the score, and the code that made it."""
    made = facts.get("write of scores", {})
    if "commit_uuid" not in made:
        return
    activity = f"nl:write-{made['commit_uuid']}"
    document.activity(activity, None, None, {"nl:run": made["run_id"], "nl:step_key": str(made["step_key"])})
    document.wasGeneratedBy(scored, activity)
    code = made["code"]
    agent = f"nl:code-{_id(str(code.get('git_commit')))}"
    document.agent(
        agent,
        {
            "prov:type": "prov:SoftwareAgent",
            "nl:package": str(code.get("package")),
            "nl:commit": str(code.get("git_commit")),
        },
    )
    document.wasAssociatedWith(activity, agent)


def lineage(records: pl.DataFrame, lake: str) -> Iterable[str]:
    """One OpenLineage COMPLETE event for each finished write, oldest first."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset
    from openlineage.client.serde import Serde

    space, producer = f"neuronledger://{lake}", "https://neuronledger.invalid/"
    for row in records.iter_rows(named=True):
        part = "" if row["layer"] is None else f"/layer={row['layer']}"
        inputs = [
            InputDataset(
                namespace=space,
                name=name + (part if name not in ("sequences", "corpus", "tokenizer", "weights", "checkpoint") else ""),
                inputFacets={},
                facets={
                    "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=entry["content_hash"])
                },
            )
            for name, entry in sorted(json.loads(row["inputs"]).items())
        ]
        output = OutputDataset(
            namespace=space,
            name=row["table"] + part,
            facets={
                "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(row["content_hash"]))
            },
            outputFacets={
                "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                    rowCount=row["rows"]
                )
            },
        )
        event = RunEvent(
            eventType=RunState.COMPLETE,
            eventTime=row["finished_at"].isoformat(),
            run=Run(runId=row["commit_uuid"]),
            job=Job(namespace="neuronledger", name=row["table"]),
            producer=producer,
            inputs=inputs,
            outputs=[output],
        )
        yield Serde.to_json(event)


def crate(folder: Path, lake: str, tables: Sequence[str], when: str | None) -> None:
    """Describe what is in the folder as an RO-Crate."""
    from rocrate.rocrate import ROCrate

    made = ROCrate()
    made.name = f"Neuron Ledger: {lake}"
    made.description = (
        "Explanations of a language model's neurons, their scores, and the proof of where they came from."
    )
    if when is not None:
        made.root_dataset["datePublished"] = when
    about = {
        "prov.json": ("Provenance of the chosen scores (W3C PROV-JSON)", "application/json"),
        "openlineage.jsonl": ("One OpenLineage event for each finished write", "application/jsonl"),
        "audit.json": ("What an audit found and what it did not check", "application/json"),
        "ledger/ledger.jsonl": ("Hash-chained lines of commits and data files", "application/jsonl"),
        "verify.py": ("Checks this folder with Python's standard library", "text/x-python"),
        "README.md": ("What is in this folder", "text/markdown"),
    }
    for name, (title, kind) in about.items():
        path = folder / name
        if path.is_file():
            facts = {"name": title, "encodingFormat": kind, "sha256": hash_file(path).removeprefix("sha256:")}
            made.add_file(path, dest_path=name, properties={**facts, "contentSize": str(path.stat().st_size)})
    for table in tables:
        made.add_dataset(
            folder / "tables" / table, dest_path=f"tables/{table}", properties={"name": f"Delta table `{table}`"}
        )
    made.metadata.write(folder)


def _readme(lake: str, found: Audit, chains: Mapping[str, Any], *, data: bool) -> str:
    told = "\n".join(f"- neuron {at.replace('-', ':')}: `why/{at}.txt`" for at in chains)
    anchor = f"\n    python verify.py --anchor {found.head}" if found.head else ""
    ledger = "`ledger/` holds the ledger." if found.head else "The lake has no ledger."
    tables = "the commits and data files of every table" if data else "the commits of every table, without data files"
    return f"""# Neuron Ledger: {lake}

What one run of Neuron Ledger found, and where it came from.

    python verify.py                                   # needs Python 3.11 and nothing else{anchor}

{ledger} `tables/` holds {tables}. `audit.json` is what an audit found ({found.findings} findings) and what it did not check.
The chains of these scores are told in sentences, and all of them in `prov.json`:

{told}

The words in `why/`, `prov.json` and `tables/` may hold texts of the corpus; its licence applies to them. The first commit of
each table names the folder in which the lake was made.
"""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode()


def _id(key: str) -> str:
    """A key as the local part of a qualified name."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in key.removeprefix("sha256:")
    )[:64]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
