"""What a release says of itself."""

import json

import dagster as dg
import pytest

from assets.dataset_release import audited, page

RELEASE = {
    "version": "1.0.0", "subject": "gpt2", "layers": [0, 1], "rows": {"scores": 1200}, "bytes": 2**20, "tables": {"scores": 7},
    "audit": {"clean": ["A1"], "not_checked": ["A2"], "against": [], "head": "sha256:ab"}, "not_fresh": [], "ledger_head": "sha256:ab", "sha256": {"data/scores/000.parquet": "cd"},
}  # fmt: skip


def test_a_summary_gives_sizes_versions_and_the_head_of_the_ledger():
    said = page(RELEASE)
    assert "| scores | 1,200 | 7 |" in said
    assert "ledger head: sha256:ab" in said
    assert "all tables are fresh" in said
    assert "1 data files, 1.0 MiB" in said


def test_what_is_stale_is_named():
    said = page(RELEASE | {"not_fresh": ["scores of layer 0 is stale (simulations changed)"], "ledger_head": None})
    assert "NOT all tables are fresh:\n  - scores of layer 0 is stale (simulations changed)" in said
    assert "the lake has no ledger" in said


def test_a_subject_is_no_markup():
    assert "`" not in page(RELEASE | {"subject": "a`<b>`"}).split("neurons of `")[1].split("`, layers")[0]


def check(name, *findings, outcome="clean"):
    return {"id": name, "findings": list(findings), "outcome": "findings" if findings else outcome}


def said(*checks, head="sha256:ab"):
    return json.dumps({"head": head, "checks": list(checks)})


def test_an_audit_without_findings_of_the_lake_as_it_is_speaks_for_a_release():
    found = audited(said(check("A1"), check("A2", outcome="not checked")), "sha256:ab")
    assert found == {"head": "sha256:ab", "clean": ["A1"], "not_checked": ["A2"], "against": []}


@pytest.mark.parametrize(
    ("audit", "against"),
    [
        ("", "no audit was made"),
        (said(check("A1"), head="sha256:cd"), "the lake was written to since its audit"),
        (said(check("A4", "a file was changed")), "A4: a file was changed"),
    ],
)
def test_no_audit_an_old_one_and_findings_speak_against_it_and_are_named(audit, against):
    found = audited(audit, "sha256:ab")
    assert found["against"] == [against]
    assert f"NOT audited, or with findings (0 checks clean, 0 not made: none):\n  - {against}" in page(
        RELEASE | {"audit": {**found, "clean": [], "not_checked": []}}
    )


def test_what_is_stale_is_the_business_of_the_release_itself():
    assert audited(said(check("A17", "scores is stale")), "sha256:ab")["against"] == []


@pytest.mark.parametrize("audit", ["{", "[]", '{"head": "a"}', '{"head": "a", "checks": [1]}'])
def test_what_is_no_audit_is_refused(audit):
    with pytest.raises(dg.Failure, match="neuronledger audit --json"):
        audited(audit, "sha256:ab")
