"""The local encoder: vectors as sentence-transformers makes them, and clear words where there are none."""

import json

import numpy as np
import pytest
import torch
from tiny_models import save_subject
from transformers import AutoModel, AutoTokenizer

from pipeline.embedding import request
from pipeline.errors import LanguageModelError
from resources.answers import read
from resources.local_language import LocalModel


def vector(folder, text):
    return np.array(json.loads(read(200, LocalModel(str(folder)).respond(request(text, model="local:x"))).text))


def pooled(folder, text, how):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    found = {"mean": states.mean(axis=0), "first": states[0], "last": states[-1]}[how]
    return found / np.linalg.norm(found)


@pytest.mark.parametrize(
    ("said", "how"),
    [(None, "mean"), ("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "first"), ("pooling_mode_lasttoken", "last")],
)  # fmt: skip
def test_tokens_become_one_vector_as_the_folder_says(tmp_path, said, how):
    folder = save_subject("bert", tmp_path)
    if said is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, said: True}))
    assert vector(folder, "the end") == pytest.approx(pooled(folder, "the end", how), abs=1e-6)


def test_a_text_that_is_too_long_is_cut(tmp_path):
    found = vector(save_subject("bert", tmp_path), "the end " * 500)
    assert np.linalg.norm(found) == pytest.approx(1)


def test_a_pooling_that_is_not_known_is_refused(tmp_path):
    folder = save_subject("bert", tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(LanguageModelError, match="pooling_mode_max_tokens"):
        vector(folder, "x")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LanguageModelError, match="cannot be used"):
        vector(tmp_path / "nowhere", "x")


def test_the_demo_model_finds_what_is_alike():
    near, far, text = (vector("demo", one) for one in ("a dog barks", "the stock market fell", "the puppy is barking"))
    assert near @ text > 0.5 > far @ text
