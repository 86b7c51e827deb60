"""The lineage benchmark measures a tiny model and a small lake from end to end."""

import json

from benchmarks import lineage


def test_every_figure_is_measured_and_no_tensor_is_missed(capsys):
    lineage.main(["--shape", "tiny", "--layers", "2", "--repetitions", "1", "--windows", "16", "--json"])
    found = {figure["figure"]: figure for figure in json.loads(capsys.readouterr().out)}
    assert set(found) == {
        "fingerprint_over_sha256",
        "recapture_late_block_over_share",
        "recapture_one_layer_over_share",
        "stale_sets_exact",
        "status_of_2_layers",
        "write_with_ledger",
    }
    assert found["stale_sets_exact"]["value"] == 1
    assert found["stale_sets_exact"]["detail"] == "28 of 28 tensors"
    assert "9 slices are stale, all of it: True" in found["status_of_2_layers"]["detail"]
