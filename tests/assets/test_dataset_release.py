"""What a release says of itself."""

from assets.dataset_release import page

RELEASE = {
    "version": "1.0.0", "subject": "gpt2", "layers": [0, 1], "rows": {"scores": 1200}, "bytes": 2**20, "tables": {"scores": 7},
    "not_fresh": [], "ledger_head": "sha256:ab", "sha256": {"data/scores/000.parquet": "cd"},
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
