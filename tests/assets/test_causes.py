"""Causes in words: what changed of the model, the text and the settings."""

import pytest

from assets.causes import corpus, parts, setting

HASH, OTHER = "0" * 16, "1" * 16


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            {"block 8 attention weights": HASH},
            {"block 8 attention weights": OTHER},
            "block 8 attention weights changed",
        ),
        ({"`n_head` in config.json": "12"}, {"`n_head` in config.json": "6"}, "`n_head` in config.json changed from 12 to 6"),
        ({"number format": "float32"}, {"number format": "bfloat16"}, "number format changed from float32 to bfloat16"),
        ({"a": HASH}, {"a": HASH, "weights adapter.weight": OTHER}, "weights adapter.weight is new"),
        ({"a": HASH, "b": HASH}, {"a": HASH}, "b is gone"),
        (dict.fromkeys("abcd", HASH), dict.fromkeys("abcd", OTHER), "a changed, b changed, and 2 other parts"),
        ({"a": HASH}, {"a": HASH}, None),
        ({}, {"a": HASH}, None),
        ({"tokenizer file a.json": HASH, "`use_cache` in config.json": "1", "b": HASH},
         {"tokenizer file a.json": OTHER, "tokenizer class in config.json": HASH, "b": OTHER}, "b changed"),
    ],
)  # fmt: skip
def test_parts_of_a_model_are_named_in_the_order_of_the_pass(before, now, said):
    assert parts(before, now) == said


def files(**hashes):
    listed = [{"path": name, "sha256": found} for name, found in hashes.items()]
    return {"kind": "files", "column": "text", "n_files": len(listed), "files": listed}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (files(a="1"), files(a="1", b="2", c="3", d="4"), "the corpus grew by 3 files"),
        (files(a="1", b="2"), files(a="1"), "the corpus lost 1 file (b)"),
        (files(a="1", b="2"), files(a="9", c="3"), "the corpus grew by 1 file (c) and lost 1 file (b) and has other text in 1 file (a)"),
        (files(a="1"), files(a="1") | {"column": "body"}, "the corpus is read from column body instead of text"),
        (files(a="1") | {"n_files": 2000}, files(a="1") | {"n_files": 2003}, "the corpus changed and has +3 files"),
        (files(a="1") | {"n_files": 2000}, files(a="2") | {"n_files": 2000}, None),
        ({"kind": "hub", "revision": "r1"}, {"kind": "hub", "revision": "r2"}, "the corpus changed: revision from r1 to r2"),
        ({"kind": "hub"}, files(a="1"), None),
        ({}, files(a="1"), None),
    ],
)  # fmt: skip
def test_of_a_corpus_the_files_are_counted(before, now, said):
    assert corpus(before, now) == said


def test_a_prompt_is_named_and_what_a_list_gained_too():
    assert setting("prompt of highlight", "sha256:" + "a" * 64, "sha256:" + "b" * 64) == (
        "the prompt of highlight changed (aaaaaaaa to bbbbbbbb)"
    )
    assert setting("methods", ["a", "b"], ["a", "b", "c"]) == "`c` was added to setting `methods`"
    assert setting("seed", 0, 7) == "setting `seed` changed from 0 to 7"
