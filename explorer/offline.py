"""Checks a bundle of Neuron Ledger with nothing but Python's standard library: `python verify.py [--anchor HEAD]`.

This file stands in every bundle as `verify.py`. It reads the files beside it and nothing else: whether each has the hash
that `manifest.json` names, whether the ledger is one chain, and whether commits and data files are those that it sealed.
Exits with 0 if all is as it was, 1 if something differs, 2 if it could not look.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTHING = "sha256:" + 64 * "0"


def hashed(path: Path) -> str:
    """The tagged hash of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def chain(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a ledger, and every break of its chain."""
    lines, faults, prev = [], [], NOTHING
    for place, raw in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            line = json.loads(raw)
            stated = line.pop("hash")
        except (ValueError, KeyError, AttributeError):
            faults.append(f"line {place} of the ledger is damaged")
            continue
        body = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        again = json.dumps({**line, "hash": stated}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        if stated != "sha256:" + hashlib.sha256(body).hexdigest() or again.encode("ascii") != raw:
            faults.append(f"line {place} of the ledger does not have the hash that it states")
        if line.get("prev") != prev or line.get("seq") != place:
            faults.append(f"line {place} of the ledger does not follow the line before it")
        lines.append({**line, "hash": stated})
        prev = stated
    return lines, faults


def against_manifest(folder: Path, stated: dict[str, str]) -> list[str]:
    """Files that are missing, changed or unknown."""
    faults = []
    for name, hashes in sorted(stated.items()):
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif hashed(path) != hashes:
            faults.append(f"{name} differs from the manifest")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strangers = here - set(stated) - {"manifest.json", ".neuronledger-export"}
    return faults + [f"{name} is in no manifest" for name in sorted(strangers) if "__pycache__" not in name]


def against_ledger(folder: Path, lines: list[dict[str, Any]]) -> tuple[list[str], int, int]:
    """Commits and data files that are not those sealed; how many data files are as sealed, and how many are not here."""
    faults, same, absent = [], 0, 0
    for line in lines:
        if "table" not in line:
            continue
        table = folder / "tables" / line["table"]
        commit = table / "_delta_log" / f"{line['version']:020}.json"
        if not commit.is_file():
            faults.append(f"the commit {line['table']} version {line['version']} is missing")
        elif hashed(commit) != line["commit"]:
            faults.append(f"the commit {line['table']} version {line['version']} is not the one sealed")
        for name, stated in line["files"].items():
            if not (table / name).is_file():
                absent += 1
            elif hashed(table / name) != stated:
                faults.append(f"{line['table']}/{name} is not the file sealed")
            else:
                same += 1
    sealed = {(line["table"], line["version"]) for line in lines if "table" in line}
    opened = {table: version for line in lines for table, version in line.get("opened", {}).items()}
    for commit in sorted(folder.glob("tables/*/_delta_log/*.json")):
        table, version = commit.parent.parent.name, int(commit.stem)
        if (table, version) not in sealed and version > opened.get(table, -1):
            faults.append(f"the commit {table} version {version} is not in the ledger")
    return faults, same, absent


def ssh_keygen(*words: str, said: str = "") -> "subprocess.CompletedProcess[str]":
    """What OpenSSH says."""
    return subprocess.run(["ssh-keygen", *words], input=said, capture_output=True, text=True, check=False)  # noqa: S603, S607


def signatures(folder: Path, lines: list[dict[str, Any]], signers: Path | None) -> tuple[list[str], list[str]]:
    """What is wrong with the signatures of heads, and what was looked at; OpenSSH says by whom they are."""
    heads = {line["hash"]: line["seq"] for line in lines}
    files = sorted((folder / "ledger" / "signatures").glob("*.sig"))
    faults = [
        f"{file.name} signs a head that the ledger does not hold"
        for file in files
        if f"sha256:{file.stem}" not in heads
    ]
    if signers is None:
        return faults, [
            f"not checked: by whom {len(files)} heads are signed (--signers FILE, with OpenSSH)"
        ] if files else []
    said = []
    for file in files:
        head, named = f"sha256:{file.stem}", ["-f", str(signers), "-s", str(file)]
        found = ssh_keygen("-Y", "find-principals", *named)
        who = found.stdout.splitlines()[0] if found.returncode == 0 and found.stdout else "nobody"
        if ssh_keygen("-Y", "verify", "-n", "neuronledger", "-I", who, *named, said=head).returncode:
            faults.append(f"the signature of the head {head} is by none of {signers}")
        else:
            said.append(f"{who} signed line {heads.get(head, '?')}, and so all before it")
    return faults if files else [*faults, "no head is signed"], said


def look(folder: Path, *, anchor: str | None = None, signers: Path | None = None) -> tuple[list[str], list[str]]:
    """What differs in a bundle, and what was looked at and what not, in words."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    faults = against_manifest(folder, manifest["files"])
    said = [f"{len(manifest['files'])} files against the manifest"]
    ledger = folder / "ledger" / "ledger.jsonl"
    if not ledger.is_file():
        if anchor is not None:
            faults.append(f"there is no ledger, and so none that holds the head {anchor}")
        return faults, [*said, "not checked: the lake had no ledger"]
    lines, broken = chain(ledger)
    wrong, same, absent = against_ledger(folder, lines)
    faults += broken + wrong
    head = lines[-1]["hash"] if lines else None
    if head != manifest["head"]:
        faults.append(f"the head of the ledger is {head}, and the manifest says {manifest['head']}")
    if anchor is not None and anchor not in {line["hash"] for line in lines}:
        faults.append(f"the ledger does not hold the head {anchor}")
    said.append(f"{len(lines)} lines of the ledger, the commits that they name, and {same} data files")
    if absent:
        said.append(f"not checked: {absent} sealed data files that are not in this bundle")
    forged, signed = signatures(folder, lines, signers)
    faults += forged
    said += signed
    if anchor is None:
        said.append("not checked: whether the head is the one noted elsewhere (--anchor HEAD)")
    said.append("not checked: what is in the rows; `neuronledger audit` and `neuronledger verify` look at that")
    return faults, said


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Check a bundle of Neuron Ledger.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--anchor", help="a head of the ledger that was noted elsewhere")
    parser.add_argument("--signers", type=Path, help="a file of those who may sign heads; needs OpenSSH")
    given = parser.parse_args()
    try:
        faults, said = look(given.folder, anchor=given.anchor, signers=given.signers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"the bundle cannot be read: {error}\n")
        return 2
    for line in (*said, *faults):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"{len(faults)} differences\n" if faults else "all is as it was sealed\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
