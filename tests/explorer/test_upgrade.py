"""A lake that an earlier version wrote: a new version of the program makes nothing stale by itself."""

import json

from resources import checkpoint, configuration
from resources.subject import HuggingFaceSubject


def of_the_weights_alone(subject):
    return checkpoint.weights_hash(number_format=subject.dtype, hashes=subject._tensor_hashes)


def test_a_lake_that_counted_more_of_the_configuration_is_fresh_and_goes_on(empty, tmp_path, monkeypatch):
    folder = empty.copy(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(configuration, "settings_that_count", checkpoint.all_settings)
        before.setattr(configuration, "tokenizer_that_counts", checkpoint.tokenizer_files)
        before.setattr(HuggingFaceSubject, "weights_hash", of_the_weights_alone)
        assert folder.type("run", "--layers", "0").exit_code == 0
    assert folder.not_fresh("--layers", "0") == {}
    versions = folder.versions()
    assert folder.type("run", "--layers", "0").exit_code == 0
    assert folder.versions() == versions
    links = json.loads(folder.type("verify", "--layer", "0", "--json").stdout)
    assert [link["name"] for link in links if link["outcome"] != "equal"] == []
    # A layer that is captured now stands beside it, and what labels and generates counts for it no more.
    assert folder.type("run").exit_code == 0
    assert folder.not_fresh() == {}
    path = folder.home / "subject" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 5, "use_cache": False}))
    assert {at for at in folder.not_fresh() if at[1] == 1} == set()
    # The weights changed for the layer that was captured with them, and no other.
    assert folder.not_fresh()["subject_layers", 0] == "stale: the weights changed"
