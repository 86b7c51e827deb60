"""Files of sparse activations as delphi caches them."""

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from pipeline.delphi_latents import WINDOWS
from pipeline.errors import SettingsError
from pipeline.tables import TABLES
from resources import foreign_files, latents_file
from resources.foreign_files import ForeignFiles

FIRST, N_WINDOWS, LENGTH, LATENTS = 100, 30, 8, 6


def dense(seed=0):
    """Activations [window, place, latent]: mostly zero, some negative, the last latent never on."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(N_WINDOWS, LENGTH, LATENTS)).astype(np.float16)
    values[draw.random(values.shape) < 0.8] = 0
    values[..., -1] = 0
    return values


def cache(folder, values, *, name="latents/layers.3.mlp/100_105.safetensors", kind=np.uint16, **other):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    locations = np.ascontiguousarray(np.argwhere(values))
    arrays = {
        "locations": locations.astype(kind), "activations": values[tuple(locations.T)],
        "tokens": np.arange(N_WINDOWS * LENGTH, dtype=np.int64).reshape(N_WINDOWS, LENGTH) % 50,
    }  # fmt: skip
    save_file({name: array for name, array in (arrays | other).items() if array is not None}, path)
    return path


def taken(folder, **more):
    batches = list(ForeignFiles(processes=1).batches("delphi", str(folder), source="s", **more))
    tables = {
        name: TABLES[name].conform(
            pl.concat([batch.frames[name] for batch in batches]).with_columns(run_id=pl.lit("r"))
        )
        for name in ("imported_records", "imported_neurons")
    }
    files = [file for batch in batches for file in batch.files]
    return tables, files, pl.concat([batch.sequences for batch in batches]).unique("sequence_id")


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_the_strongest_windows_of_each_latent_are_records_with_all_their_activations(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(latents_file, "PIECE", 7)
    monkeypatch.setattr(foreign_files, "NEURONS", 2)
    values = dense()
    cache(tmp_path, values, kind=kind)
    tables, files, sequences = taken(tmp_path)
    assert [(file["path"], file["status"]) for file in files] == [
        ("latents/layers.3.mlp/100_105.safetensors", "imported")
    ]
    words = dict(sequences.select("sequence_id", "tokens").iter_rows())
    records = tables["imported_records"]
    assert set(records.get_column("split")) == {"none"}
    for latent in range(LATENTS):
        mine = records.filter(pl.col("neuron") == FIRST + latent).sort("rank")
        peaks = values[..., latent].max(axis=1)
        windows = sorted(
            (window for window in range(N_WINDOWS) if peaks[window] > 0), key=lambda one: (-peaks[one], one)
        )
        assert mine.get_column("activations").to_list() == [
            values[window, :, latent].tolist() for window in windows[:WINDOWS]
        ]
        places = [[str(token) for token in (np.arange(LENGTH) + window * LENGTH) % 50] for window in windows[:WINDOWS]]
        assert [words[name] for name in mine.get_column("sequence_id")] == places
    neurons = tables["imported_neurons"].sort("neuron")
    assert neurons.get_column("neuron").to_list() == list(range(FIRST, FIRST + LATENTS - 1))
    exact = values.astype(np.float64).reshape(-1, LATENTS)[:, :-1]
    assert neurons.get_column("mean").to_list() == pytest.approx(exact.mean(axis=0).tolist())
    assert neurons.get_column("variance").to_list() == pytest.approx(exact.var(axis=0).tolist())
    counted = json.loads(neurons.item(0, "original"))
    assert (counted["firings"], counted["tokens"]) == (int((exact[:, 0] != 0).sum()), N_WINDOWS * LENGTH)


def test_tokens_are_words_where_their_tokenizer_is_at_hand(tmp_path):
    cache(tmp_path, dense())
    Tokenizer(models.WordLevel({f"w{place}": place for place in range(50)}, unk_token="w0")).save(
        str(tmp_path / "tokenizer.json")
    )
    _, files, sequences = taken(tmp_path, tokenizer=str(tmp_path))
    assert files[0]["status"] == "imported"
    assert all(word.startswith("w") for words in sequences.get_column("tokens") for word in words)
    (tmp_path / "small").mkdir()
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "small" / "tokenizer.json"))
    _, files, _ = taken(tmp_path, tokenizer=str(tmp_path / "small"))
    assert "is none of the tokenizer's 1" in files[0]["reason"]


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ({"tokens": None}, "it lacks tokens"),
        ({"activations": np.zeros(3, dtype=np.float16)}, "its arrays must be"),
        ({"tokens": np.zeros((N_WINDOWS, LENGTH), dtype=np.float32)}, "of other kinds"),
        ({"tokens": np.zeros((2, LENGTH), dtype=np.int64)}, "a location's window must be from 0 to 1"),
        (
            {"activations": np.array([np.nan, 1], dtype=np.float16), "locations": np.zeros((2, 3), dtype=np.uint16)},
            "not finite",
        ),
        ({"activations": np.ones(2, dtype=np.float16), "locations": np.zeros((2, 3), dtype=np.uint16)}, "there twice"),
        (
            {"activations": np.ones(1, dtype=np.float16), "locations": np.array([[0, 0, 9]], dtype=np.uint16)},
            "latent must be",
        ),
    ],
)
def test_a_file_that_cannot_be_is_rejected(tmp_path, spoiled, said):
    cache(tmp_path, dense(), **spoiled)
    _, files, _ = taken(tmp_path)
    assert files[0]["status"] == "rejected"
    assert said in files[0]["reason"]


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"\x40\0\0\0\0\0\0\0{}", b"{" * 100])
def test_what_is_no_safetensors_is_rejected(tmp_path, data):
    cache(tmp_path, dense()).write_bytes(data)
    _, files, _ = taken(tmp_path)
    assert "no safetensors" in files[0]["reason"]


def test_a_mutilated_file_is_taken_over_or_rejected_and_nothing_else(tmp_path):
    path = cache(tmp_path, dense())
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        place = int(draw.integers(len(whole)))
        path.write_bytes(
            whole[:place] + draw.bytes(int(draw.integers(1, 5))) + whole[place + int(draw.integers(0, 5)) :]
        )
        _, files, _ = taken(tmp_path)
        assert len(files) == 1


def test_two_hookpoints_of_one_layer_are_refused(tmp_path):
    cache(tmp_path, dense())
    cache(tmp_path, dense(), name="latents/layers.3.attn/100_105.safetensors")
    with pytest.raises(SettingsError, match="which would all be neurons of layer 3"):
        taken(tmp_path)
