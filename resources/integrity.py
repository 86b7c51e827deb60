"""Integrity: whether the bytes of a lake are those that its ledger sealed.

Everything here is read as plain files, without Delta: who doubts the tables need not trust their reader.

What a ledger without an anchor cannot tell: that its last lines were taken away together with their commits, or that it
was written anew from some line on. A head noted elsewhere, the *anchor*, tells both.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.audit import Check
from pipeline.errors import LakeError
from pipeline.tables import TABLES
from resources import signature
from resources.delta import DeltaLake, declaration
from resources.lake_files import TAG, Files
from resources.ledger import AT_ONCE, LOG, NOTHING, Line, commit_stem
from resources.table_form import rules

PATIENCE = 2.0
"""Seconds that a writer has to seal a commit that was just seen."""


@dataclass(frozen=True)
class Chain:
    """The ledger as it was read."""

    lines: Sequence[Line] = ()
    faults: Sequence[str] = ()
    torn: bool = False

    @property
    def head(self) -> str | None:
        """The hash of the last line."""
        return self.lines[-1].hash if self.lines else None

    @property
    def sealed(self) -> dict[tuple[str, int], Line]:
        """The line of each commit."""
        return {line.at: line for line in self.lines if line.at is not None}

    @property
    def opened(self) -> dict[str, int]:
        """For each table that was there before the ledger, its version then."""
        return {name: version for line in self.lines for name, version in line.content.get("opened", {}).items()}


@dataclass(frozen=True)
class Log:
    """The commits of one table, as files."""

    table: str
    files: Files
    """Those of the lake."""
    commits: dict[int, str]
    """The name of each commit's file, by its version."""
    live: dict[str, int] = field(default_factory=dict)
    """Each data file that counts, with the version that added it: by the commits alone, from the first to the last."""
    configuration: dict[str, str] = field(default_factory=dict)
    columns: Sequence[str] = ()
    faults: Sequence[str] = ()
    hashes: dict[int, str] = field(default_factory=dict)
    """The tagged hash of each commit that could be read."""


def read_chain(lake: DeltaLake) -> Chain:
    """The ledger of a lake, with every break of its chain."""
    assert lake.ledger is not None  # noqa: S101 - for the type checker: callers asked
    lines, faults, prev = [], [], NOTHING
    for place, (line, _) in enumerate(lake.ledger.lines()):
        if line is None:
            faults.append(f"line {place} of the ledger is damaged: its bytes do not have the hash that they state")
            continue
        if line.content["prev"] != prev or line.seq != place:
            faults.append(
                f"line {place} of the ledger does not follow the line before it: one was changed, added or taken away"
            )
        lines.append(line)
        prev = line.hash
    return Chain(lines, faults, lake.ledger.is_torn())


def read_logs(lake: DeltaLake) -> list[Log]:
    """The commits of every table of a lake that has some."""
    assert lake.ledger is not None  # noqa: S101 - for the type checker: callers asked
    files = lake.ledger.files
    return [_log(files, name, found) for name in TABLES if (found := files.names(f"{name}/{LOG}"))]


def integrity(
    lake: DeltaLake,
    *,
    anchors: Sequence[str] = (),
    signers: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Check], str | None]:
    """A1, A2, A3, A4 and A6, and the head of the ledger. `anchors` are heads that were noted elsewhere.

    Signatures are held against `signers`, a file of those who may sign.

    Raises:
        SettingsError: there is no such file, or OpenSSH is not installed.
    """
    if lake.ledger is None:
        why = "the lake has no ledger"
        return [Check(name, not_checked=why) for name in ("A1", "A2", "A3", "A4", "A6")], None
    # The logs first: what is committed while the ledger is read has its line by then, or soon.
    logs = read_logs(lake)
    chain = read_chain(lake)
    if not chain.faults and unsealed(logs, chain):
        time.sleep(PATIENCE)
        chain = read_chain(lake)
    if not chain.lines and not chain.faults:
        why = "there is no ledger: the lake was written by an older version, or its ledger was taken away"
        checks = [Check(name, not_checked=why) for name in ("A1", "A2", "A3", "A4")]
        if anchors:
            checks[1] = _anchored(chain, anchors)
        return [*checks, _properties(logs)], None
    anchored = _signed(lake.ledger.files, chain, signers, _anchored(chain, anchors))
    checks = [_chain(chain), anchored, _commits(logs, chain)]
    return [*checks, _data(lake, logs, chain, progress), _properties(logs)], chain.head


def _chain(chain: Chain) -> Check:
    torn = ["the last line is half written: a writer died within it, and the next one takes it away"]
    return Check("A1", f"{len(chain.lines):,} lines", chain.faults, notes=torn if chain.torn else ())


def _anchored(chain: Chain, anchors: Sequence[str]) -> Check:
    if not anchors:
        return Check(
            "A2",
            not_checked="no head was given (`--anchor HEAD`) and none is known elsewhere: that the newest writes were taken "
            "away, or the ledger was written anew as a whole, cannot be found without one",
        )
    place = {line.hash: index for index, line in enumerate(chain.lines)}
    lost = [anchor for anchor in anchors if anchor not in place]
    findings = [f"the ledger does not hold the head {anchor}: its past was written anew or cut off" for anchor in lost]
    last = max((place[anchor] for anchor in anchors if anchor in place), default=len(chain.lines) - 1)
    later = [line for line in chain.lines[last + 1 :] if line.at]
    notes = [f"{len(later):,} commits came after the head that was noted last: {_listed(later)}"] if later else []
    return Check("A2", f"{len(anchors):,} heads", findings, notes=notes)


def _signed(files: Files, chain: Chain, signers: Path | None, anchored: Check) -> Check:
    """A2 with the signatures beside the ledger: each is of a head that the ledger holds, by one who may sign."""
    place = {line.hash: index for index, line in enumerate(chain.lines)}
    signatures = signature.kept(files)
    findings = [
        f"a signature is of the head {head}, which the ledger does not hold: its past was written anew or cut off"
        for head in signatures if head not in place
    ]  # fmt: skip
    notes = []
    here = {head: raw for head, raw in signatures.items() if head in place}
    if here and signers is None:
        notes.append(f"{len(here):,} heads are signed; `--signers FILE` tells by whom")
    elif signers is not None:
        by = {head: signature.signer(head, raw, signers) for head, raw in here.items()}
        findings += [
            f"the signature of the head {head} is by none of {signers}" for head, who in by.items() if who is None
        ]
        if last := max((head for head, who in by.items() if who), key=place.__getitem__, default=None):
            later = len(chain.lines) - 1 - place[last]
            notes.append(f"{by[last]} signed line {place[last]:,}, and so all before it; {later:,} lines came after")
        else:
            findings.append(f"no head is signed by any of {signers}")
    return replace(anchored, findings=[*anchored.findings, *findings], notes=[*anchored.notes, *notes])


def _listed(lines: Sequence[Line]) -> str:
    named = [f"{line.content['table']} version {line.content['version']}" for line in lines[:5]]
    return ", ".join(named) + (", ..." if len(lines) > 5 else "")


def unsealed(logs: Iterable[Log], chain: Chain) -> list[tuple[Log, int]]:
    """Commits without a line, but for those from before the ledger."""
    if not chain.lines:
        return []
    sealed, opened = chain.sealed, chain.opened
    return [
        (log, version)
        for log in logs
        for version in sorted(log.commits)
        if (log.table, version) not in sealed and version > opened.get(log.table, -1)
    ]


def unlike_sealed(logs: Iterable[Log], chain: Chain) -> list[str]:
    """Commits that are gone, or are not those that were sealed."""
    found = {(log.table, version): (log, name) for log in logs for version, name in log.commits.items()}
    said = []
    for (table, version), line in chain.sealed.items():
        if (table, version) not in found:
            said.append(f"{table} version {version} is sealed, but its commit is gone")
            continue
        log, name = found[table, version]
        if log.hashes.get(version) != line.content.get("commit"):
            said.append(f"{table} version {version} was changed after it was sealed: {log.files.uri}/{name}")
    return said


def _commits(logs: Sequence[Log], chain: Chain) -> Check:
    sealed, opened = chain.sealed, chain.opened
    found = {(log.table, version): path for log in logs for version, path in log.commits.items()}
    findings = [fault for log in logs for fault in log.faults]
    for log, version in unsealed(logs, chain):
        findings.append(
            f"{log.table} version {version} is not in the ledger: its writer died, or another program wrote it; "
            "`neuronledger doctor` seals it if its rows are those of its record"
        )
    findings += unlike_sealed(logs, chain)
    before = [at for at in found if at not in sealed and at[1] <= opened.get(at[0], -1)]
    doctored = [line for line in sealed.values() if line.content.get("sealed_by") != "writer"]
    notes = [f"{len(doctored):,} commits were sealed afterwards, by doctor: {_listed(doctored)}"] if doctored else []
    left_out = f"{len(before):,} commits from before the ledger began" if before else None
    return Check("A3", f"{len(found):,} commits", findings, not_checked=left_out, notes=notes)


def _data(lake: DeltaLake, logs: Sequence[Log], chain: Chain, progress: Callable[[str], None]) -> Check:
    """Every file that a line names; of those, the ones that count must be there."""
    assert lake.ledger is not None  # noqa: S101 - for the type checker: callers asked
    live = {(log.table, name) for log in logs for name in log.live}
    sealed = {
        (line.content["table"], name): hashed for line in chain.lines for name, hashed in line.content.get("files", {}).items()
    }  # fmt: skip
    findings, gone, size = [], 0, 0
    for place, ((table, name), hashed) in enumerate(sorted(sealed.items())):
        if place % 100 == 0:
            progress(f"hashing data files: {place:,} of {len(sealed):,}")
        try:
            found, count = lake.ledger.files.hashed(f"{table}/{name}")
            size += count
            if found != hashed:
                findings.append(f"{table}/{name} was changed after it was sealed")
        except OSError as error:
            if (table, name) in live or name.startswith(LOG):
                findings.append(f"{table}/{name} cannot be read: {error.strerror}")
            else:
                gone += 1
    findings += _as_read(lake, logs, sealed)
    unknown = sum(
        (log.table, name) not in sealed for log in logs for name, version in log.live.items()
        if version <= chain.opened.get(log.table, -1)
    )  # fmt: skip
    left_out = f"{unknown:,} data files from before the ledger began" if unknown else None
    notes = [f"{gone:,} sealed files of older versions are gone, as after a vacuum"] if gone else []
    return Check("A4", f"{len(sealed):,} files, {size / 1e6:,.1f} MB", findings, not_checked=left_out, notes=notes)


def _as_read(lake: DeltaLake, logs: Sequence[Log], sealed: dict[tuple[str, str], str]) -> list[str]:
    """Where Delta, which starts from a checkpoint, would read other files than the commits name."""
    findings = []
    for log in logs:
        names = [name.rpartition("/")[2] for name in log.files.names(f"{log.table}/{LOG}")]
        strangers = [name for name in names if ".checkpoint" in name and name.endswith(".parquet")]
        for name in strangers:
            if (log.table, f"{LOG}/{name}") not in sealed:
                findings.append(f"the checkpoint {log.table}/{LOG}/{name} is not in the ledger")
        if not strangers:
            continue
        try:
            folder = f"{lake.uri}/{log.table}/"
            read_ones = {unquote(file.removeprefix(folder)) for file in lake.files(log.table)}
            if read_ones != set(log.live):
                findings.append(f"a checkpoint of {log.table} names other data files than its commits")
        except LakeError as error:
            findings.append(f"{log.table} cannot be opened: {error}")
    return findings


def _properties(logs: Sequence[Log]) -> Check:
    findings, known = [], 0
    for log in logs:
        if not log.commits:
            continue
        known += 1
        asked = rules(declaration(log.table), columns=log.columns, stored="://" in log.files.uri)
        for name, value in asked.items():
            stored = log.configuration.get(name)
            # Delta writes a constraint of one term without its brackets.
            if stored is None or _bare(stored) != _bare(str(value)):
                findings.append(f"{log.table}: `{name}` is {stored!r}, not {value!r}")
    return Check("A6", f"{known:,} tables", findings)


def _bare(text: str) -> str:
    return text.replace("(", "").replace(")", "")


def _log(files: Files, table: str, names: Sequence[str]) -> Log:
    commits = {int(stem): name for name in names if (stem := commit_stem(name)) is not None}
    faults: list[str] = []
    hashes: dict[int, str] = {}
    live: dict[str, int] = {}
    configuration: dict[str, str] = {}
    columns: list[str] = []
    for missing in sorted(set(range(max(commits, default=-1) + 1)) - set(commits)):
        faults.append(f"{table} version {missing} is missing between others")
    for version, raw in zip(
        sorted(commits), _each(files, [commits[version] for version in sorted(commits)]), strict=True
    ):
        actions = None if raw is None else _actions(raw)
        if raw is not None:
            hashes[version] = TAG + hashlib.sha256(raw).hexdigest()
        if actions is None:
            faults.append(f"{table} version {version} is empty, cut off or damaged: {files.uri}/{commits[version]}")
            continue
        # A commit may name a file in the order remove, add: what it adds counts.
        for action in actions:
            if "remove" in action:
                live.pop(unquote(action["remove"]["path"]), None)
        for action in actions:
            if "add" in action:
                live[unquote(action["add"]["path"])] = version
            if "metaData" in action:
                configuration = dict(action["metaData"].get("configuration", {}))
                columns = _names(action["metaData"])
    return Log(table, files, commits, live, configuration, columns, faults, hashes)


def _each(files: Files, names: Sequence[str]) -> Iterator[bytes | None]:
    """The bytes of each file, several fetched at a time; None for one that cannot be read."""

    def bytes_of(name: str) -> bytes | None:
        try:
            return files.read(name)
        except OSError:
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(bytes_of, names)


def _names(metadata: dict[str, Any]) -> list[str]:
    """The columns of a table, as far as its own words can be read."""
    try:
        return [str(column["name"]) for column in json.loads(metadata["schemaString"])["fields"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _actions(raw: bytes) -> list[dict[str, Any]] | None:
    try:
        found = [json.loads(line) for line in raw.split(b"\n") if line]
        sound = bool(found) and all(isinstance(action, dict) for action in found)
        # Delta reads a commit without its last lines as one with fewer rows.
        for action in found if sound else ():
            for kind in ("add", "remove"):
                if kind in action and not isinstance(action[kind]["path"], str):
                    return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if sound else None
