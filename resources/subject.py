"""The subject model: a Hugging Face transformer, its neurons found by structure and its weights read from safetensors.

    name --> folder --> config ------> anatomy: list of blocks, MLP output projection     (needs no weights)
                   |--> tokenizer ---> tokens, and the special tokens around a window
                   '--> weights -----> a pass with a hook at the site of each layer asked for

Torch and transformers are imported only when something is asked of the model.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SubjectError
from pipeline.ports import LayerSite, Tokens
from pipeline.provenance import content_hash, short
from pipeline.tables import MISSING
from resources import causal, checkpoint, configuration
from resources.anatomy import Anatomy, find_neurons, float32, gain, matrix
from resources.model_folder import ModelFolder, first_line, quiet, require_libraries
from resources.sites import find_site
from resources.tokenizer import SubjectTokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

OPENAI_COMPAT = "openai-compat"
NUMBER_FORMATS = ("float32", "bfloat16", "float16", OPENAI_COMPAT)

LENGTH_STEP = 16
"""Passes are padded to a multiple of this many tokens, which keeps results equal to the bit for any batch."""

TOKENS_OF_A_PIECE = 2048
"""Tokens that go through the model at once on a CPU: more is no faster and takes more memory, fewer is slower."""

MOST_TOKENS_OF_A_PIECE = 65_536
"""The same on a GPU, which by then has enough to do."""

LOGITS_AT_ONCE = 2**25
"""Numbers of next-token logits that are held at a time where neurons are replaced: 128 MiB in float32."""

PROBE_WINDOWS, PROBE_LENGTH = 4, 64


class _PassEndedError(Exception):
    """Ends a forward pass after the last layer that was asked for."""


@dataclass
class _Piece:
    """Windows of a batch that go through the model together, and the layers that have had them."""

    rows: slice
    handed: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def cut(self, n: int) -> "tuple[_Piece, _Piece]":
        """The first `n` windows, and the others."""
        middle = self.rows.start + n
        return (
            _Piece(slice(self.rows.start, middle), set(self.handed)),
            _Piece(slice(middle, self.rows.stop), set(self.handed)),
        )


def _in_full(name: str) -> str:
    """A file or folder in a form that holds in any working folder; anything else as it is."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name


class HuggingFaceSubject:
    """A subject model from the Hugging Face hub, a local folder, or the demo package.

    `name` is `demo`, a folder, or a name on the hub such as `gpt2` or `EleutherAI/pythia-70m`. `site` says what counts
    as a neuron, see `resources.sites`. Code from a repository is never run, and pickled weights are never read.

    `dtype` is a number format, or `openai-compat`: float16 with the MLP's GELU replaced by `x * sigmoid(1.702 x)`
    evaluated in float16, with which the activations that OpenAI published were made.

    `known` are the hashes by which a lake knows models. Earlier versions counted more of config.json, and a model that the
    lake knows by such a hash keeps it, so that nothing is stale by a new version alone.

    Raises:
        SubjectError: from the constructor when an argument is wrong; from a method when the model cannot be found,
            is damaged, or has no MLP neurons.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        site: str = "mlp",
        known: Callable[[], Container[str]] = frozenset,
    ) -> None:
        if dtype not in NUMBER_FORMATS:
            raise SubjectError(f"dtype {dtype!r} is not known; use one of {', '.join(NUMBER_FORMATS)}.")
        devices = device.split(",")
        if not all(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", one) for one in devices):
            raise SubjectError(
                f"device {device!r} is not known; use `auto`, `cpu`, `cuda`, `mps`, or several as in `cuda:0,cuda:1`."
            )
        self.name = name
        self.dtype = dtype
        self._folder = ModelFolder(name, revision=revision)
        self._site = find_site(site)
        self._known = known
        self._asked_device, *self._other_devices = devices
        self._seen_alone: set[int] = set()

    def __reduce__(self) -> "tuple[Callable[[], HuggingFaceSubject], tuple[()]]":
        """For another process or machine, which loads the weights by itself."""
        kind, colon, place = self._site.name.partition(":")
        chosen: dict[str, Any] = {
            "device": self._asked_device,
            "dtype": self.dtype,
            "site": kind + colon + _in_full(place),
        }
        name = _in_full(self.name) if self._folder.kind == "folder" else self.name
        return partial(HuggingFaceSubject, name, revision=self._folder.revision, **chosen), ()

    def layers(self) -> Sequence[LayerSite]:
        """The layers with their neurons, from the configuration alone (and the files of the site, if it has any)."""
        anatomy, site = self._anatomy, self._site
        module = site.place(anatomy).module
        return [
            LayerSite(
                layer=layer,
                site=f"{anatomy.path}.{layer}"
                + (f".{module}" if module else "")
                + (f" {site.name}" if site.name != "mlp" else ""),
                n_neurons=site.count(anatomy, layer),
                signed=site.signed(anatomy),
            )
            for layer in range(anatomy.count)
        ]

    def fingerprints(self) -> Sequence[str]:
        """For each layer, the tagged hash of all that can influence its neurons. Reads the files, not the model."""
        return list(self._fingerprints)

    def parts(self) -> Sequence[Mapping[str, str]]:
        """For each layer, what its fingerprint is made from, by names such as `block 8 attention weights`."""
        anatomy, site = self._anatomy, self._site
        folder = self._folder.whole
        found = checkpoint.layer_parts(
            folder,
            blocks=anatomy.blocks(site.place(anatomy)),
            number_format=self.dtype,
            hashes=self._tensor_hashes,
            settings=configuration.settings_that_count(folder),
            tokenizer=configuration.tokenizer_that_counts(folder),
        )
        if site.name != "mlp":
            for layer, parts in enumerate(found):
                parts["site"] = short(content_hash([site.name.partition(":")[0], site.made_with(anatomy, layer)]))
        return found

    def tokenizer_hash(self) -> str:
        """Tagged hash of all that turns text into tokens."""
        folder = self._folder.whole
        before = None if configuration.is_new_to_older_versions(folder) else checkpoint.tokenizer_hash(folder)
        return self._named(content_hash(configuration.tokenizer_that_counts(folder)), before)

    def _named(self, content: str, before: str | None) -> str:
        """The hash of a content: the one that an earlier version gave it where a lake knows it by that."""
        return before if before is not None and before in self._known() else content

    def device(self) -> str:
        """Where `capture` computes, such as `cpu` or `cuda:0`; `auto` is settled here."""
        require_libraries()
        return str(self._chosen_device())

    def workers(self) -> Sequence["HuggingFaceSubject"]:
        """This subject on each of its devices, itself first."""
        folder, site = self._folder, self._site.name
        others = (
            HuggingFaceSubject(self.name, revision=folder.revision, device=device, dtype=self.dtype, site=site)
            for device in self._other_devices
        )
        return [self, *others]

    def tokenize(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """Each text as the model's tokens. The text is taken literally: `<|endoftext|>` in it is ordinary text.

        Raises:
            SubjectError: text spells a special token that the tokenizer cannot read literally, or there is no fast
                tokenizer.
        """
        return self._tokenizer.tokenize(texts)

    def vocabulary_size(self) -> int:
        """How many token embeddings there are, from the configuration alone; a tokenizer may know fewer tokens."""
        return self._anatomy.vocabulary

    def spell(self, token_ids: Sequence[int]) -> Sequence[bytes]:
        """The UTF-8 bytes that each token stands for by itself, b"" for one that the tokenizer does not know.

        A word's first token begins with a space, see `SubjectTokenizer.spell`.

        Raises:
            SubjectError: there is no fast tokenizer.
        """
        return self._tokenizer.spell(token_ids)

    def max_tokens(self) -> int:
        """The longest window of text, in tokens, that fits with the special tokens around it."""
        return self._anatomy.positions - len(self._tokenizer.prefix) - len(self._tokenizer.suffix)

    def probe(self) -> Sequence[Sequence[int]]:
        """Four windows of up to 64 token ids, drawn with a fixed seed from all ordinary tokens of the vocabulary."""
        size = (PROBE_WINDOWS, min(PROBE_LENGTH, self.max_tokens()))
        windows: list[list[int]] = np.random.default_rng(0).choice(self._tokenizer.ordinary, size=size).tolist()
        return windows

    def capture(
        self,
        batches: Iterable[Sequence[Sequence[int]]],
        layers: Sequence[int],
        receive: "Callable[[int, slice, torch.Tensor], None]",
    ) -> None:
        """Run batches of equally long token-id windows once; `receive` gets (sequence, token, neuron).

        Activations are handed over in the model's number format; those of other sites than neurons may be float32.

        Windows are padded on the right, so that learned positions stay right, to a multiple of 16 tokens. A batch goes
        through in pieces that fit the memory. When memory runs out, in the pass or in `receive`, the piece is halved
        and only layers that have not had it get it; pieces stay that small for the rest.

        Raises:
            SubjectError: a layer, a token id or a window does not fit the model, the windows of a batch differ in
                length, or there is not enough memory for a single window.
        """
        import torch

        asked, device = self._asked(layers), self._model.device
        self._see_windows_alone(asked[-1])
        tokens_at_once = self._tokens_at_once()
        for batch in batches:
            ids, mask = self._padded(batch)
            waiting = [_Piece(slice(0, len(batch)))]
            while waiting:
                piece = waiting.pop()
                if len(piece) > (most := max(1, tokens_at_once // ids.shape[1])):
                    piece, others = piece.cut(most)
                    waiting.append(others)
                try:
                    with self._hooks(asked, piece, padded=ids.shape[1], length=len(batch[0]), receive=receive):
                        self._pass(ids[piece.rows], mask[piece.rows])
                    continue
                except torch.OutOfMemoryError as error:
                    if len(piece) == 1:
                        raise SubjectError(
                            f"there is not enough memory on {device} for one window of {len(batch[0])} tokens of "
                            f"{self.name!r}; use shorter windows, fewer layers at a time, dtype bfloat16, or device cpu."
                        ) from error
                # Behind the handler, whose traceback held the tensors of the pass.
                tokens_at_once = len(piece) // 2 * ids.shape[1]
                waiting.append(piece)
                if device.type == "cuda":
                    torch.cuda.empty_cache()

    def _see_windows_alone(self, last: int) -> None:
        """See, once for a last layer, that what stands behind a window, where the mask says that nothing does, stays there.

        So it does in causal models, and in those whose attention heeds the mask: there to the bit, in any number format.

        Raises:
            SubjectError: it does, or the model cannot be run on tokens alone.
        """
        import torch

        if last in self._seen_alone:
            return
        window = self.probe()[0][: LENGTH_STEP - len(self._tokenizer.prefix) - len(self._tokenizer.suffix) - 1]
        ids, mask = self._padded([window])
        found: list[np.ndarray] = []
        for other in (ids, np.where(mask == 1, ids, window[0])):
            with self._hooks(
                [last],
                _Piece(slice(0, 1)),
                padded=ids.shape[1],
                length=len(window),
                receive=lambda _layer, _rows, values: found.append(values.float().numpy(force=True).copy()),
            ):
                try:
                    self._pass(other, mask)
                except (SubjectError, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # any fault in a stranger's model ends here
                    raise SubjectError(
                        f"subject {self.name!r} cannot be run on tokens alone ({first_line(error)})."
                    ) from error
        if not np.array_equal(found[0], found[1], equal_nan=True):
            raise SubjectError(
                f"subject {self.name!r} ({type(self._model).__name__}) mixes what stands behind a text into it, although it is "
                "masked, so that no window can be read by itself; models whose attention heeds the mask are supported."
            )
        self._seen_alone.add(last)

    def _pass(self, ids: np.ndarray, mask: np.ndarray) -> None:
        import torch

        device = self._model.device

        def there(array: np.ndarray) -> torch.Tensor:
            # From pinned memory, or else a GPU would first be waited for.
            given = torch.from_numpy(array)
            return given.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else given.to(device)

        with torch.inference_mode():
            try:
                self._model(input_ids=there(ids), attention_mask=there(mask))
            except _PassEndedError:
                return

    @contextmanager
    def _hooks(
        self,
        layers: Sequence[int],
        piece: _Piece,
        *,
        padded: int,
        length: int,
        receive: "Callable[[int, slice, torch.Tensor], None]",
    ) -> Iterator[None]:
        """Hooks that hand over what a pass of this piece brings by, and end the pass after the last layer."""
        anatomy, site = self._anatomy, self._site
        place, start = site.place(anatomy), len(self._tokenizer.prefix)
        blocks = self._model.get_submodule(anatomy.path)

        def hand_over(layer: int, found: "torch.Tensor") -> None:
            if layer not in piece.handed:
                # OPT hands its MLP all rows as one long list of tokens; Longformer pads by itself.
                if tuple(found.shape[:-1]) not in {(len(piece), padded), (len(piece) * padded,)}:
                    raise SubjectError(
                        f"{anatomy.path}.{layer} of {self.name!r} handles {len(piece)} windows of {padded} tokens as a tensor of "
                        f"{tuple(found.shape)}, so that no token can be told in it; expected (window, token, axis)."
                    )
                values = site.values(anatomy, layer, found.reshape(len(piece), padded, -1))
                receive(layer, piece.rows, values[:, start : start + length])
                piece.handed.add(layer)
            if layer == layers[-1]:
                raise _PassEndedError

        def before(layer: int) -> Callable[..., None]:
            return lambda _module, arguments, named: hand_over(
                layer, arguments[0] if arguments else named["hidden_states"]
            )

        def behind(layer: int) -> Callable[..., None]:
            return lambda _module, _arguments, output: hand_over(
                layer, output[0] if isinstance(output, tuple) else output
            )

        handles = []
        try:
            for layer in layers:
                try:
                    module = blocks[layer].get_submodule(place.module)
                except AttributeError as error:
                    raise SubjectError(
                        f"{anatomy.path}.{layer} of the subject has no module {place.module!r}, as site {site.name!r} "
                        "expects; it belongs to another model."
                    ) from error
                if place.side == "input":
                    handles.append(module.register_forward_pre_hook(before(layer), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(behind(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def irreplaceable(self) -> str | None:
        """Why no neuron can be replaced: `not_causal` or `not_replaceable`; None if one can."""
        if self._site.name != "mlp":
            return "not_replaceable"
        return None if self._is_causal else "not_causal"

    def replaced(
        self, layer: int, window: Sequence[int], neurons: Sequence[int], values: np.ndarray
    ) -> "Iterator[torch.Tensor]":
        """Logits (token, vocabulary) on a window as it is, and then with each neuron replaced.

        Raises:
            SubjectError: no neuron can be replaced, or layer, neuron, window or values do not fit the model.
        """
        import torch

        if reason := self.irreplaceable():
            raise SubjectError(f"no neuron of {self.name!r} can be replaced: {MISSING[reason]}.")
        (layer,) = self._asked([layer])
        n_neurons = self._anatomy.widths[layer]
        if values.shape != (len(neurons), len(window)) or not all(0 <= neuron < n_neurons for neuron in neurons):
            raise SubjectError(
                f"values of shape {values.shape} for {len(neurons)} neurons and a window of {len(window)} tokens: expected "
                f"one for each, and neurons 0 to {n_neurons - 1}."
            )
        ids, mask = self._padded([window])
        model, device, start = self._whole, self._model.device, len(self._tokenizer.prefix)
        at = slice(start, start + len(window))
        # The first row is the window as it is.
        chosen, into = [None, *neurons], [np.empty(0, np.float32), *values]
        at_once = max(1, LOGITS_AT_ONCE // (ids.shape[1] * self._anatomy.vocabulary))
        module = model.base_model.get_submodule(f"{self._anatomy.path}.{layer}.{self._anatomy.output}")
        for first in range(0, len(chosen), at_once):
            rows = list(zip(chosen, into, strict=True))[first : first + at_once]

            def replace(_module: Any, given: tuple[Any, ...], rows: Sequence[Any] = rows) -> tuple[Any, ...]:
                # OPT hands its MLP all rows as one long list of tokens.
                changed = given[0].clone().view(len(rows), ids.shape[1], -1)
                for row, (neuron, what) in enumerate(rows):
                    if neuron is not None:
                        changed[row, at, neuron] = torch.from_numpy(what).to(changed)
                return changed.view(given[0].shape), *given[1:]

            handle = module.register_forward_pre_hook(replace)
            try:
                with torch.inference_mode():
                    found = model(
                        input_ids=torch.from_numpy(ids).expand(len(rows), -1).to(device),
                        attention_mask=torch.from_numpy(mask).expand(len(rows), -1).to(device),
                        use_cache=False,
                    ).logits[:, at]
            finally:
                handle.remove()
            yield from found

    def embeddings(self) -> np.ndarray:
        """The token embeddings, float32 (vocabulary, width)."""
        return float32(self._model.get_input_embeddings().weight)

    def reading(self, layer: int) -> np.ndarray | None:
        """What each neuron reads, float32 (width, neuron): `diag(ln.g) @ W_in`.

        None for gated MLPs, for norms that do more than centre and scale, for embeddings of another width than the
        blocks' (some OPT), and for every site but the MLP's neurons.
        """
        anatomy = self._anatomy
        (layer,) = self._asked([layer])
        if self._site.name != "mlp" or anatomy.signed or anatomy.norm is None:
            return None
        block = self._model.get_submodule(anatomy.path)[layer]
        scale = gain(block.get_submodule(anatomy.norm))
        if scale is None or len(scale) != self._model.get_input_embeddings().weight.shape[1]:
            return None
        return np.asarray(scale[:, None] * matrix(block.get_submodule(anatomy.inputs[0])), dtype=np.float32)

    def writing(self, layer: int) -> np.ndarray | None:
        """What each neuron writes, float32 (neuron, width): the rows of the output projection.

        For latents of a sparse autoencoder the rows of its decoder; None for sites that write nothing of their own.
        """
        (layer,) = self._asked([layer])
        if not self._site.writes:
            return None
        if self._site.name != "mlp":
            return self._site.writing(layer)
        return matrix(self._model.get_submodule(self._anatomy.path)[layer].get_submodule(self._anatomy.output))

    def unembedding(self) -> np.ndarray | None:
        """From what neurons write to logits, float32 (width, vocabulary): `diag(ln_f.g) @ W_U`, without the bias.

        None where the head is no single linear map behind a final norm (encoders), is not stored, or has another width
        than the blocks (some OPT), and for sites that write nothing of their own.
        """
        if not self._site.writes:
            return None
        norm = self._anatomy.final_norm
        scale = None if norm is None else gain(self._model.get_submodule(norm))
        head = self._head()
        if scale is None or head is None or head.shape[1] != len(scale):
            return None
        return np.asarray(scale[:, None] * head.T, dtype=np.float32)

    def weights_hash(self) -> str:
        """Tagged hash of all weights, in the number format in which they are read, and of how the model uses them."""
        weights = checkpoint.weights_hash(number_format=self.dtype, hashes=self._tensor_hashes)
        settings = configuration.settings_that_count(self._folder.whole)
        return self._named(content_hash({"weights": weights, "settings": content_hash(settings)}), weights)

    def provenance(self) -> Mapping[str, Any]:
        """Source, revision, file hashes, number format, device and versions: what decides the numbers."""
        import torch
        import transformers

        folder, model, text = self._folder.whole, self._model, self._tokenizer
        names = (*checkpoint.TOKENIZER_FILES, *configuration.FURTHER_FILES)
        files = [folder / "config.json", *(folder / name for name in names)]
        files += [folder / checkpoint.INDEX_FILE, *checkpoint.weight_files(folder)]
        device = model.device
        return {
            "name": self.name,
            "kind": self._folder.kind,
            "revision": self._folder.revision,
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
            "activation_function": "x * sigmoid(1.702 x) in float16" if self.dtype == OPENAI_COMPAT else None,
            "site": self._site.name,
            "site_made_with": {
                str(layer): made_with
                for layer in range(self._anatomy.count)
                if (made_with := self._site.made_with(self._anatomy, layer)) is not None
            },
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
    def _config(self) -> Any:
        from transformers import AutoConfig

        folder = self._folder.configuration
        try:
            with quiet():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # any fault in a stranger's config.json ends here
            raise SubjectError(
                f"subject {self.name!r}: its config.json describes no model that transformers knows "
                f"({first_line(error)}). Code from a repository is never run."
            ) from error
        if getattr(config, "is_encoder_decoder", False):
            raise SubjectError(
                f"subject {self.name!r} is an encoder-decoder ({config.model_type}): looked for one list of blocks. "
                "Encoders (BERT) and decoders (GPT-2) are supported."
            )
        if getattr(config, "quantization_config", None) is not None:
            raise SubjectError(f"subject {self.name!r} is quantised; give the checkpoint that it was made from.")
        # Where an MLP reads a few tokens at a time, to the same result in less memory, its hook would get these alone.
        config.chunk_size_feed_forward = 0
        return config

    @cached_property
    def _anatomy(self) -> Anatomy:
        import torch
        from transformers import AutoModel

        config = self._config
        try:
            with quiet(), torch.device("meta"):
                skeleton = AutoModel.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False
                )
        except Exception as error:  # any fault in a stranger's config.json ends here
            raise SubjectError(
                f"subject {self.name!r}: no {config.model_type} can be built from its config.json "
                f"({first_line(error)})."
            ) from error
        anatomy = find_neurons(config, skeleton, self.name)
        if self.dtype == OPENAI_COMPAT and anatomy.gelu is None:
            raise SubjectError(
                f"subject {self.name!r}: dtype {OPENAI_COMPAT!r} replaces the GELU of its MLPs, and they have none; "
                "use dtype float32."
            )
        return anatomy

    @cached_property
    def _fingerprints(self) -> list[str]:
        anatomy, site = self._anatomy, self._site
        folder, kind = self._folder.whole, site.name.partition(":")[0]

        def chain(settings: Mapping[str, Any], tokenizer: Mapping[str, str]) -> list[str]:
            found = checkpoint.layer_fingerprints(
                folder,
                blocks=anatomy.blocks(site.place(anatomy)),
                number_format=self.dtype,
                hashes=self._tensor_hashes,
                settings=settings,
                tokenizer=tokenizer,
            )
            if site.name == "mlp":
                return found
            return [
                content_hash({"weights": weights, "site": kind, "made_with": site.made_with(anatomy, layer)})
                for layer, weights in enumerate(found)
            ]

        now = chain(configuration.settings_that_count(folder), configuration.tokenizer_that_counts(folder))
        if configuration.is_new_to_older_versions(folder):
            return now
        before = chain(checkpoint.all_settings(folder), checkpoint.tokenizer_files(folder))
        return [self._named(content, earlier) for content, earlier in zip(now, before, strict=True)]

    @cached_property
    def _tensor_hashes(self) -> Mapping[str, str]:
        """The hash of each tensor: every byte of the weights is read for them, so they are kept."""
        return checkpoint.tensor_hashes(checkpoint.stored_tensors(self._folder.whole))

    @cached_property
    def _tokenizer(self) -> SubjectTokenizer:
        return load_tokenizer(self._folder.whole, vocabulary=self._anatomy.vocabulary, subject=self.name)

    @cached_property
    def _torch_dtype(self) -> "torch.dtype":
        import torch

        dtype: torch.dtype = torch.float16 if self.dtype == OPENAI_COMPAT else getattr(torch, self.dtype)
        return dtype

    def _head(self) -> np.ndarray | None:
        """The language-model head's weight (vocabulary, width), which a model without head does not load."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self._config
        try:
            with quiet(), torch.device("meta"):
                whole = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False
                )
        except ValueError:  # transformers knows no head for this family
            return None
        head = whole.get_output_embeddings()
        parts = dict(whole.named_children())
        others = [part for part in parts.values() if part is not head and part is not whole.base_model]
        # An encoder's head transforms what it reads before it is linear.
        if not any(part is head for part in parts.values()) or any(list(part.parameters()) for part in others):
            return None
        stored = checkpoint.stored_tensors(self._folder.whole)
        tensor = next((stored[name] for name in ("lm_head.weight", "embed_out.weight") if name in stored), None)
        if tensor is not None:
            return float32(torch.from_numpy(checkpoint.read_float32(tensor)).to(self._torch_dtype))
        return self.embeddings() if config.tie_word_embeddings else None

    @cached_property
    def _is_causal(self) -> bool:
        return causal.has_head(self._config, self._folder.whole)

    @cached_property
    def _whole(self) -> Any:
        """The model with its head, around the one that is read."""
        return causal.with_head(self._config, self._model, self._folder.whole)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModel

        device = self._chosen_device()
        anatomy = self._anatomy
        blocks = anatomy.blocks(anatomy.neurons)
        # Reading the headers first gives a clear word on files that were cut short.
        stored = checkpoint.stored_tensors(self._folder.whole)
        try:
            with quiet():
                model, report = AutoModel.from_pretrained(
                    self._folder.whole,
                    config=self._config,
                    dtype=self._torch_dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # any fault in a stranger's checkpoint ends here
            raise SubjectError(f"subject {self.name!r}: its weights cannot be loaded ({first_line(error)}).") from error
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
        if self.dtype == OPENAI_COMPAT and anatomy.gelu is not None:
            for block in model.get_submodule(anatomy.path):
                block.set_submodule(anatomy.gelu, _quick_gelu())
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
        count = self._anatomy.count
        wrong = [layer for layer in layers if not 0 <= layer < count]
        if wrong or not layers:
            raise SubjectError(f"layers {list(wrong or layers)} of {self.name!r}: expected some of 0 to {count - 1}.")
        for layer in layers:
            if reason := self._site.missing(self._anatomy, layer):
                raise SubjectError(f"site {self._site.name!r}: {reason}. Ask for those layers alone.")
        return sorted(set(layers))

    def _tokens_at_once(self) -> int:
        """How many tokens to begin with."""
        import torch

        device, anatomy = self._model.device, self._anatomy
        if device.type != "cuda":
            return TOKENS_OF_A_PIECE
        free, _ = torch.cuda.mem_get_info(device)
        # What a block holds at one time, in float32: its stream and branches, and the neurons before and behind the
        # nonlinearity, as read, and as reduced. A guess on the safe side: too much is halved, too little is slow.
        a_token = 4 * (16 * anatomy.width + 8 * max(anatomy.widths))
        return int(min(max(free // 2 // a_token, 1), MOST_TOKENS_OF_A_PIECE))

    def _check_tokens(self, tokens: np.ndarray) -> None:
        vocabulary = self._anatomy.vocabulary
        wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
        if len(wrong):
            raise SubjectError(
                f"token id {wrong[0]} is outside of the vocabulary of {self.name!r}: expected 0 to {vocabulary - 1}. "
                "The windows were made with another tokenizer."
            )

    def _padded(self, batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 (sequence, token): special tokens around each window, padding at the right."""
        text, positions, limit = self._tokenizer, self._anatomy.positions, self.max_tokens()
        lengths = [len(window) for window in batch]
        if not lengths or not min(lengths):
            raise SubjectError("a batch or a window is empty: expected at least one window of at least one token.")
        if min(lengths) != max(lengths):
            raise SubjectError(
                f"the windows of a batch have {min(lengths)} to {max(lengths)} tokens: expected equally long ones. "
                "Sort them by length first."
            )
        if max(lengths) > limit:
            raise SubjectError(
                f"a window of {max(lengths)} tokens is too long for {self.name!r}: expected at most {limit} tokens "
                f"with {len(text.prefix) + len(text.suffix)} special tokens around them."
            )
        tokens = np.asarray(batch, dtype=np.int64)
        self._check_tokens(tokens)
        start, stop = len(text.prefix), len(text.prefix) + max(lengths)
        needed = stop + len(text.suffix)
        length = min(-(-needed // LENGTH_STEP) * LENGTH_STEP, positions)
        ids = np.full((len(batch), length), text.pad, dtype=np.int64)
        ids[:, :start], ids[:, start:stop], ids[:, stop:needed] = text.prefix, tokens, text.suffix
        mask = np.zeros_like(ids)
        mask[:, :needed] = 1
        return ids, mask


def _quick_gelu() -> "torch.nn.Module":
    """`x * sigmoid(1.702 x)` in the number format of `x`: Hendrycks & Gimpel 2016, as OpenAI's code has it."""
    import torch

    class QuickGELU(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(1.702 * x)

    return QuickGELU()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
