"""A checkpoint on disk: the safetensors files of a model folder, read without torch.

Each file begins with a header that names every tensor with its number format, shape and byte range. That is enough to
check that a file is whole, and to hash each tensor where it lies. The hashes then make one fingerprint per layer,
which covers what can influence the neurons of that layer and nothing that comes after them:

    base                configuration, tokenizer, embeddings, number format: every layer rests on it
    own[k]              tensors of block k up to its neurons
    carried[k]          tensors of block k after its neurons (output projection): they reach block k + 1 and later
    never               final norm, heads, pooler, stored attention masks: no neuron sees them

A tensor that is not recognised counts early rather than late: a layer may be called stale needlessly, never wrongly
fresh.
"""

import hashlib
import json
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SubjectError
from pipeline.provenance import TAG, canonical_json, content_hash, fingerprint_chain, short

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Every file that can decide how text becomes tokens."""

_NUMBER_FORMATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own reader

_IGNORED_SETTINGS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Entries of config.json that change no activation. The number format enters the fingerprint by the one asked for."""

_FINAL_NORM = r"ln_f|norm|norm_f|final_norm|final_layer_norm|final_layernorm"
_HEAD = re.compile(
    r"(lm_head|embed_out|cls|classifier|pooler|predictions|qa_outputs|score|vocab_layer_norm|vocab_projector"
    r"|vocab_transform|head\.(dense|norm))\.|decoder\.(weight|bias)$"
)
_BUFFER = re.compile(r"(^|\.)((attn|attention)\.masked_bias|rotary_emb\.inv_freq|position_ids)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` and `end` are bytes from the beginning of `file`."""

    name: str
    number_format: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


@dataclass(frozen=True)
class Blocks:
    """How a model's tensors are named: the list of blocks, and what in a block comes after its neurons."""

    path: str
    """Module path of the list of blocks in the base model, such as `encoder.layer`."""
    count: int
    after: tuple[str, ...]
    """Beginnings of the names, within a block, that come after the neurons, such as `output.dense.`."""

    def place(self, name: str) -> tuple[str, int, str] | None:
        """Prefix of the model, block number and name within the block, or None for a tensor outside of all blocks."""
        found = re.match(rf"((?:[^.]+\.)*?){re.escape(self.path)}\.(\d+)\.(.+)$", name)
        return (found[1], int(found[2]), found[3]) if found else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: the single one, or those of its index.

    Raises:
        SubjectError: there are none, or the index names a file that is missing or outside of the folder.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise SubjectError(
                f"{folder} holds pickled weights only ({', '.join(pickles[:3])}); they are refused because loading a "
                "pickle can run code. Where you trust the file, convert it once with "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) and give the new folder."
            )
        raise SubjectError(f"{folder} holds no weights: expected {SINGLE_FILE} or {INDEX_FILE}.")
    files_of = json_object(index).get("weight_map")
    names = set(map(str, files_of.values())) if isinstance(files_of, dict) else set()
    if not names:
        raise SubjectError(f"{index} names no files: expected an object `weight_map`. Download the model again.")
    files = []
    for name in sorted(map(str, names)):
        if Path(name).name != name:
            raise SubjectError(f"{index} names {name!r}: expected a file of the same folder.")
        if not (folder / name).is_file():
            raise SubjectError(f"{index} names {name}, which is missing. Download the model again.")
        files.append(folder / name)
    return files


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name, from the headers alone.

    Raises:
        SubjectError: no safetensors, or a file is damaged or cut short.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for tensor in header(file):
            if tensor.name in tensors:
                raise SubjectError(
                    f"{tensor.name} is stored twice, in {tensors[tensor.name].file.name} and {file.name}."
                )
            tensors[tensor.name] = tensor
    return tensors


def tensor_hashes(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The tagged SHA-256 of each tensor: number format, shape and bytes."""
    hashes: dict[str, str] = {}
    for file in sorted({tensor.file for tensor in tensors.values()}):
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            for tensor in tensors.values():
                if tensor.file == file:
                    digest = hashlib.sha256(canonical_json([tensor.number_format, tensor.shape]).encode("ascii"))
                    with content[tensor.start : tensor.end] as part:
                        digest.update(part)
                    hashes[tensor.name] = TAG + digest.hexdigest()
    return hashes


def read_float32(tensor: StoredTensor) -> np.ndarray:
    """One tensor as a float32 array.

    Raises:
        SubjectError: it holds no floating-point numbers.
    """
    kind = _NUMBER_FORMATS.get(tensor.number_format)
    if kind is None:
        raise SubjectError(
            f"{tensor.file}: {tensor.name} is stored as {tensor.number_format}, expected {', '.join(_NUMBER_FORMATS)}."
        )
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.start)
        raw = np.frombuffer(opened.read(tensor.end - tensor.start), dtype=kind)
    if tensor.number_format == "BF16":
        # The upper half of a float32.
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw.astype(np.float32).reshape(tensor.shape)


def file_hash(path: Path) -> str:
    """The tagged SHA-256 of a whole file."""
    with path.open("rb") as opened:
        return TAG + hashlib.file_digest(opened, "sha256").hexdigest()


def config_hash(folder: Path) -> str:
    """The tagged hash of config.json, without the entries that change no activation (dropouts, versions, names).

    Requests to models in this process are known by it, and records of subjects made before `resources.configuration`.
    """
    return content_hash(all_settings(folder))


def all_settings(folder: Path) -> dict[str, Any]:
    """The entries that `config_hash` is of."""
    settings = json_object(folder / "config.json")
    return {key: value for key, value in settings.items() if key not in _IGNORED_SETTINGS and "drop" not in key}


def tokenizer_hash(folder: Path) -> str:
    """The tagged hash of all files that decide how text becomes tokens."""
    return content_hash(tokenizer_files(folder))


def tokenizer_files(folder: Path) -> dict[str, str]:
    """For each file that `tokenizer_hash` is of, the tagged hash of its bytes."""
    return {name: file_hash(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def layer_fingerprints(
    folder: Path,
    *,
    blocks: Blocks,
    number_format: str,
    hashes: Mapping[str, str],
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, str],
) -> list[str]:
    """For each layer, the tagged hash of all that can influence its neurons; `hashes` are the folder's `tensor_hashes`.

    `settings` are the entries of config.json that count, `tokenizer` the hashes of what decides how text becomes tokens.

    The names of tensors enter without the prefix that a language-model head puts before them (`transformer.`), so a
    model saved with or without its head has the same fingerprints.

    Raises:
        SubjectError: no safetensors, or a file is damaged or cut short.
    """
    outside, own, carried = _grouped(folder, blocks, hashes)
    base = content_hash(
        {
            "config": content_hash(settings),
            "tokenizer": content_hash(tokenizer),
            "number_format": number_format,
            "tensors": outside,
        }
    )
    return fingerprint_chain(base, [content_hash(part) for part in own], [content_hash(part) for part in carried])


def layer_parts(
    folder: Path,
    *,
    blocks: Blocks,
    number_format: str,
    hashes: Mapping[str, str],
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, str],
) -> list[dict[str, str]]:
    """For each layer, what its fingerprint is made from, by names such as `block 8 attention weights`.

    Raises:
        SubjectError: no safetensors, or a file is damaged or cut short.
    """
    outside, own, carried = _grouped(folder, blocks, hashes)
    parts = {f"`{name}` in config.json": _shown(value) for name, value in settings.items()}
    # Files have no space in their names.
    parts |= {f"tokenizer {'' if ' ' in name else 'file '}{name}": short(found) for name, found in tokenizer.items()}
    parts["number format"] = number_format
    parts |= {f"weights {name}": short(found) for name, found in outside.items()}
    layers: list[dict[str, str]] = []
    for block in range(blocks.count):
        if block:
            parts |= _named(block - 1, carried[block - 1], blocks)
        parts |= _named(block, own[block], blocks)
        layers.append(dict(parts))
    return layers


def _grouped(
    folder: Path, blocks: Blocks, hashes: Mapping[str, str]
) -> tuple[dict[str, str], list[dict[str, str]], list[dict[str, str]]]:
    """The hashes of tensors that count: outside of the blocks, up to each block's neurons, and after them."""
    tensors = stored_tensors(folder)
    places = {name: blocks.place(name) for name in tensors}
    prefix = next((place[0] for place in places.values() if place), "")
    outside: dict[str, str] = {}
    own: list[dict[str, str]] = [{} for _ in range(blocks.count)]
    carried: list[dict[str, str]] = [{} for _ in range(blocks.count)]
    for name, tensor in tensors.items():
        place = places[name]
        if is_unused(tensor) or (place is None and _comes_last(name.removeprefix(prefix), blocks.path)):
            continue
        if place is None or place[1] >= blocks.count:
            outside[name.removeprefix(prefix)] = hashes[name]
        else:
            _, block, within = place
            (carried if within.startswith(blocks.after) else own)[block][within] = hashes[name]
    return outside, own, carried


def _named(block: int, tensors: Mapping[str, str], blocks: Blocks) -> dict[str, str]:
    """The tensors of one block by what they belong to."""
    groups: dict[str, dict[str, str]] = {}
    for within, found in tensors.items():
        groups.setdefault(f"block {block} {_kind(within, blocks)} weights", {})[within] = found
    return {name: short(content_hash(group)) for name, group in groups.items()}


def _kind(within: str, blocks: Blocks) -> str:
    """What a tensor of a block belongs to, in words."""
    first, *_ = within.split(".")
    if re.match(r"(self_)?att", first):
        return "attention"
    if re.search(r"norm|(^|_)ln(_|$)", within.rpartition(".")[0], re.IGNORECASE):
        return f"norm {within.rpartition('.')[0]}"
    if re.match(r"mlp|ffn|fc\d|intermediate|output", first):
        return "MLP output" if within.startswith(blocks.after) else "MLP input"
    return first


def _shown(value: Any) -> str:
    """A value as it is if it is short, else its hash."""
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 40 else short(content_hash(value))


def weights_hash(*, number_format: str, hashes: Mapping[str, str]) -> str:
    """The tagged hash of every tensor by name, from its `tensor_hashes`, and of the number format in which they are read."""
    return content_hash({"number_format": number_format, "tensors": hashes})


def is_unused(tensor: StoredTensor) -> bool:
    """Whether a tensor is a buffer that old checkpoints store and the model makes by itself (causal masks)."""
    # A causal mask has four axes; a parameter of the same name would be a vector.
    return bool(_BUFFER.search(tensor.name)) or (len(tensor.shape) == 4 and bool(_MASK.search(tensor.name)))


def _comes_last(name: str, path: str) -> bool:
    """Whether a tensor outside of the blocks is used only after all of them: final norm, pooler, heads."""
    parent = path.rpartition(".")[0]
    beside = re.escape(parent + ".") if parent else ""
    return bool(_HEAD.match(name) or re.fullmatch(rf"{beside}({_FINAL_NORM})\.(weight|bias)", name))


def header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, from its header alone.

    Raises:
        SubjectError: the file is damaged or cut short.
    """
    size = file.stat().st_size
    damaged = f"{file} is damaged ({size} bytes)"
    remedy = "Download or save it again."
    with file.open("rb") as opened:
        start = opened.read(8)
        if len(start) < 8:
            raise SubjectError(f"{damaged}: expected at least 8 bytes of safetensors header. {remedy}")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - 8, _LARGEST_HEADER):
            raise SubjectError(f"{damaged}: its header alone should be {length} bytes. {remedy}")
        text = opened.read(length)
    try:
        entries = json.loads(text)
        tensors = [
            StoredTensor(
                name=name,
                number_format=str(entry["dtype"]),
                shape=tuple(int(axis) for axis in entry["shape"]),
                file=file,
                start=8 + length + int(entry["data_offsets"][0]),
                end=8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise SubjectError(f"{damaged}: its safetensors header cannot be read. {remedy}") from error
    position = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position or tensor.end < tensor.start:
            raise SubjectError(f"{damaged}: {tensor.name} does not begin where the tensor before it ends. {remedy}")
        position = tensor.end
    if position != size:
        raise SubjectError(f"{damaged}: its header promises {position} bytes. {remedy}")
    return tensors


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SubjectError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubjectError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise SubjectError(f"{path} holds a {type(value).__name__}: expected a JSON object.")
    return value
