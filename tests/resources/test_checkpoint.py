"""Safetensors files read without torch: their headers, their damage, and the fingerprints of layers."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import SubjectError
from resources.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Blocks,
    all_settings,
    is_unused,
    layer_fingerprints,
    layer_parts,
    read_float32,
    stored_tensors,
    tensor_hashes,
    tokenizer_files,
    weight_files,
    weights_hash,
)

BLOCKS = Blocks(path="encoder.layer", count=2, after=("output.dense.", "output.LayerNorm."))

TENSORS = {
    "embeddings.word_embeddings.weight": [0.0],
    "encoder.layer.0.attention.self.query.weight": [1.0],
    "encoder.layer.0.output.dense.weight": [2.0],
    "encoder.layer.1.attention.output.dense.weight": [3.0],
    "encoder.layer.1.output.dense.weight": [4.0],
    "pooler.dense.weight": [5.0],
    "adapter.weight": [6.0],
}


def write(folder: Path, tensors: Mapping[str, list[float]], *, prefix: str = "", file: str = SINGLE_FILE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"hidden_size": 1, "hidden_dropout_prob": 0.1}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({prefix + name: np.array(values, np.float32) for name, values in tensors.items()}, folder / file)
    return folder


def with_header(path: Path, header: object, content: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def fingerprints(folder: Path) -> list[str]:
    hashes = tensor_hashes(stored_tensors(folder))
    return layer_fingerprints(
        folder, blocks=BLOCKS, number_format="float32", hashes=hashes,
        settings=all_settings(folder), tokenizer=tokenizer_files(folder),
    )  # fmt: skip


def hash_of_all(folder: Path, *, number_format: str = "float32") -> str:
    return weights_hash(number_format=number_format, hashes=tensor_hashes(stored_tensors(folder)))


def test_a_header_tells_where_each_tensor_lies(tmp_path: Path) -> None:
    write(tmp_path, {"a": [1.0, 2.0], "b": [3.0]})
    tensors = stored_tensors(tmp_path)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    assert (tensors["a"].shape, tensors["a"].number_format) == ((2,), "F32")
    assert np.frombuffer(content[tensors["b"].start : tensors["b"].end], np.float32).tolist() == [3.0]


def test_a_tensor_hash_depends_on_bytes_shape_and_number_format_only(tmp_path: Path) -> None:
    arrays = {
        "a": np.zeros(4, np.float32),
        "same": np.zeros(4, np.float32),
        "value": np.ones(4, np.float32),
        "shape": np.zeros((2, 2), np.float32),
        "format": np.zeros(4, np.int32),
        "empty": np.zeros(0, np.float32),
    }
    save_file(arrays, tmp_path / SINGLE_FILE)
    hashes = tensor_hashes(stored_tensors(tmp_path))
    assert hashes["a"] == hashes.pop("same")
    assert len(set(hashes.values())) == len(hashes) == 5


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("embeddings.word_embeddings.weight", [0, 1]),
        ("encoder.layer.0.attention.self.query.weight", [0, 1]),
        ("encoder.layer.0.output.dense.weight", [1]),
        ("encoder.layer.1.attention.output.dense.weight", [1]),
        ("encoder.layer.1.output.dense.weight", []),
        ("pooler.dense.weight", []),
        ("adapter.weight", [0, 1]),
    ],
)
def test_a_tensor_counts_from_the_first_layer_that_it_can_reach(changed: str, stale: list[int], tmp_path: Path) -> None:
    before = fingerprints(write(tmp_path, TENSORS))
    after = fingerprints(write(tmp_path, TENSORS | {changed: [9.0]}))
    assert [layer for layer in range(2) if before[layer] != after[layer]] == stale


def test_the_prefix_of_a_model_with_a_head_does_not_count(tmp_path: Path) -> None:
    head = {"cls.predictions.bias": [7.0]}
    assert fingerprints(write(tmp_path / "base", TENSORS)) == fingerprints(
        write(tmp_path / "bert", TENSORS, prefix="bert.")
    )
    assert fingerprints(write(tmp_path / "base", TENSORS)) == fingerprints(write(tmp_path / "head", TENSORS | head))


def test_a_final_norm_beside_the_blocks_does_not_count_and_an_embedding_norm_does(tmp_path: Path) -> None:
    before = fingerprints(write(tmp_path, TENSORS))
    assert fingerprints(write(tmp_path, TENSORS | {"encoder.final_layer_norm.weight": [1.0]})) == before
    assert fingerprints(write(tmp_path, TENSORS | {"embeddings.norm.weight": [1.0]})) != before


def test_only_a_stored_mask_is_unused_never_a_bias_of_the_same_name(tmp_path: Path) -> None:
    arrays = {
        "h.0.attn.bias": np.zeros((1, 1, 2, 2), np.float32),
        "h.1.attn.bias": np.zeros(2, np.float32),
        "h.0.attn.c_attn.bias": np.zeros(2, np.float32),
        "h.0.attn.masked_bias": np.zeros((), np.float32),
    }
    save_file(arrays, tmp_path / SINGLE_FILE)
    unused = {name for name, tensor in stored_tensors(tmp_path).items() if is_unused(tensor)}
    assert unused == {"h.0.attn.bias", "h.0.attn.masked_bias"}


def test_the_files_of_an_index_are_read_together(tmp_path: Path) -> None:
    names = sorted(TENSORS)
    write(tmp_path, {name: TENSORS[name] for name in names[:3]}, file="one.safetensors")
    write(tmp_path, {name: TENSORS[name] for name in names[3:]}, file="two.safetensors")
    places = {name: "one.safetensors" if name in names[:3] else "two.safetensors" for name in names}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    assert [path.name for path in weight_files(tmp_path)] == ["one.safetensors", "two.safetensors"]
    assert fingerprints(tmp_path) == fingerprints(write(tmp_path / "single", TENSORS))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is missing"),
        ({"weight_map": {"a": "../model.safetensors"}}, "expected a file of the same folder"),
        ({"weight_map": {}}, "names no files"),
        ([], "expected a JSON object"),
    ],
)
def test_a_broken_index_is_refused(index: object, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(SubjectError, match=message):
        weight_files(tmp_path)


def test_every_file_that_is_not_whole_is_refused_with_its_size(tmp_path: Path) -> None:
    file = write(tmp_path, TENSORS) / SINGLE_FILE
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(SubjectError, match=rf"model.safetensors is damaged \({size} bytes\)"):
            stored_tensors(tmp_path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(SubjectError, match=f"its header promises {len(whole)} bytes"):
        stored_tensors(tmp_path)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xff",
        b"[" * 5000,
        [],
        {"a": 1},
        {"a": ONE | {"data_offsets": [0]}},
        {"a": ONE | {"data_offsets": [4, 0]}},
        {"a": ONE | {"data_offsets": [1, 4]}},
        {"a": ONE | {"data_offsets": [-4, 4]}},
        {"a": ONE, "b": ONE},
        {"a": {"dtype": "F32"}},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: object, tmp_path: Path) -> None:
    with_header(tmp_path / SINGLE_FILE, header, b"\0\0\0\0")
    with pytest.raises(SubjectError, match=r"model.safetensors is damaged"):
        stored_tensors(tmp_path)


def test_a_tensor_stored_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("one.safetensors", "two.safetensors"):
        write(tmp_path, {"a": [1.0]}, file=file)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(SubjectError, match=r"a is stored twice, in one.safetensors and two.safetensors"):
        stored_tensors(tmp_path)


def test_the_hash_of_all_weights_counts_names_bytes_and_the_number_format_but_not_files(tmp_path: Path) -> None:
    before = hash_of_all(write(tmp_path / "a", TENSORS))
    names = sorted(TENSORS)
    split = write(tmp_path / "b", {name: TENSORS[name] for name in names[:2]}, file="one.safetensors")
    write(split, {name: TENSORS[name] for name in names[2:]}, file="two.safetensors")
    places = {name: "one.safetensors" if name in names[:2] else "two.safetensors" for name in names}
    (split / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    assert hash_of_all(split) == before
    others = {hash_of_all(tmp_path / "a", number_format="bfloat16")}
    for number, name in enumerate(TENSORS):
        changed = write(tmp_path / f"c{number}", TENSORS | {name: [9.0]})
        others.add(hash_of_all(changed))
    assert len(others - {before}) == 1 + len(TENSORS)


def test_a_tensor_of_any_float_format_is_read_as_float32(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, np.inf], [2.0**-130, -0.0]])
    for number_format, kind in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16)):
        save_file({"a": values.astype(kind)}, tmp_path / SINGLE_FILE)
        (tensor,) = stored_tensors(tmp_path).values()
        assert tensor.number_format == number_format
        np.testing.assert_array_equal(read_float32(tensor), values.astype(kind).astype(np.float32))
    upper_half = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    header = {"a": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}}
    with_header(tmp_path / SINGLE_FILE, header, upper_half.tobytes())
    (tensor,) = stored_tensors(tmp_path).values()
    np.testing.assert_array_equal(read_float32(tensor), values.astype(np.float32))


def test_a_tensor_of_whole_numbers_is_not_read_as_float(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.int64)}, tmp_path / SINGLE_FILE)
    (tensor,) = stored_tensors(tmp_path).values()
    with pytest.raises(SubjectError, match=r"a is stored as I64, expected F64, F32, F16, BF16"):
        read_float32(tensor)


@pytest.mark.parametrize("changed", [*TENSORS, "config.json", "tokenizer.json"])
def test_the_parts_that_differ_are_those_of_the_layers_whose_fingerprint_does(changed: str, tmp_path: Path) -> None:
    def parts(folder: Path) -> list[dict[str, str]]:
        hashes = tensor_hashes(stored_tensors(folder))
        return layer_parts(
            folder, blocks=BLOCKS, number_format="float32", hashes=hashes,
            settings=all_settings(folder), tokenizer=tokenizer_files(folder),
        )  # fmt: skip

    folder = write(tmp_path, TENSORS)
    before = fingerprints(folder), parts(folder)
    if changed in TENSORS:
        write(tmp_path, TENSORS | {changed: [9.0]})
    else:
        (tmp_path / changed).write_text('{"hidden_size": 2}')
    after = fingerprints(folder), parts(folder)
    for layer in range(2):
        differ = {name for name in before[1][layer] if before[1][layer][name] != after[1][layer].get(name)}
        assert bool(differ) == (before[0][layer] != after[0][layer])
        assert differ <= {
            "weights embeddings.word_embeddings.weight",
            "weights adapter.weight",
            "block 0 attention weights",
            "block 0 MLP output weights",
            "block 1 attention weights",
            "`hidden_size` in config.json",
            "tokenizer file tokenizer.json",
        }
