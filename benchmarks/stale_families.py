"""Families of models: does the stale set hold for those that no test names? Every family that transformers can build small.

    python -m benchmarks.stale_families                     # half an hour on one core
    python -m benchmarks.stale_families --families gemma3_text,qwen3 --entries
    python -m benchmarks.stale_families --say               # each tensor and entry that counts needlessly

Of each family of text models a random one of three layers is written to a folder. Then each tensor is changed by itself, or with
`--entries` each entry of config.json: the layers whose activations change are held against those whose fingerprint does. A
layer that changes with the same fingerprint is *missed*, which may never be; one that stays with another fingerprint is *needless*.
Biases of keys are left out, for softmax takes them out again.
"""

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import subjects
from benchmarks.figures import Figure, as_json, as_text
from pipeline.errors import SubjectError
from resources.anatomy import find_neurons
from resources.checkpoint import SINGLE_FILE
from resources.model_folder import quiet
from resources.subject import HuggingFaceSubject

VOCABULARY = 320
WINDOW = list(range(40, 60))
LARGEST = 3_000_000
"""Parameters of a model; a family that none of the sizes below makes small is left out."""
NO_CHANGE = 1e-6
KEY_BIAS = re.compile(r"(^|[._])(k|key|k_lin|key_proj|k_proj)\.bias$")

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "word_embed_proj_dim", "embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner", "ffn_hidden_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "kv_lora_rank", "q_lora_rank", "v_head_dim", "sliding_window", "attention_window"), 8),
    **dict.fromkeys(("rotary_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 4),
    **dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts"), 4),
    "moe_intermediate_size": 12, "num_experts_per_tok": 2, "vocab_size": VOCABULARY, "type_vocab_size": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "query_pre_attn_scalar": 8,
}  # fmt: skip
"""Small sizes by the names that families give them."""
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global"], 3]]},
    "roberta": {"max_position_embeddings": 66, "pad_token_id": 1},
}


@dataclass
class Found:
    """What changing the parts of one family came to."""

    family: str
    n: int = 0
    missed: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Change everything, and print the figures."""
    from transformers import CONFIG_MAPPING

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", help="names of transformers, separated by commas; all unless given")
    parser.add_argument("--entries", action="store_true", help="entries of config.json in place of tensors")
    parser.add_argument("--say", action="store_true", help="name what was missed and what counts needlessly")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    found = []
    for family in asked.families.split(",") if asked.families else sorted(CONFIG_MAPPING):
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            try:
                save(family, folder)
                found.append(entries(family, folder) if asked.entries else tensors(family, folder))
            # Most are no models of text, and each says so in its own way.
            except Exception as error:  # noqa: BLE001
                if asked.families:
                    print(f"{family}: {type(error).__name__}: {str(error)[:200]}")
                continue
        if asked.say:
            last = found[-1]
            print(f"{family}: {last.n} changed; missed {last.missed}; needless {last.needless}")
    print(as_json(figures(found)) if asked.json else "\n".join(map(as_text, figures(found))))


def figures(found: Sequence[Found]) -> list[Figure]:
    """Missed and needless, over all families."""
    total, families = sum(one.n for one in found), len(found)
    missed = [f"{one.family} {name}" for one in found for name in one.missed]
    exact = [one.family for one in found if not one.missed and not one.needless]
    said = f"{total:,} changes of {families} families; of these {len(exact)} exact: {', '.join(exact)}"
    return [
        Figure(
            "changes that were missed",
            len(missed),
            "changes",
            goal=0,
            higher_is_better=False,
            detail=", ".join(missed) or "none",
        ),
        Figure(
            "families whose stale set is exact",
            len(exact) / max(families, 1),
            "of all",
            goal=None,
            higher_is_better=True,
            detail=said,
        ),
    ]


def save(family: str, folder: Path) -> None:
    """Write a random model of a family, with the tokenizer of the benchmarks.

    Raises:
        SubjectError: it has no neurons that are found, or is too large.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    config = small(family)
    with quiet(), torch.device("meta"):
        skeleton = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    if sum(parameter.numel() for parameter in skeleton.parameters()) > LARGEST:
        raise SubjectError(f"{family} is too large.")
    find_neurons(config, skeleton, family)
    model: Any = None
    for kind in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel):
        try:
            with quiet():
                model = kind.from_config(config)  # type: ignore[no-untyped-call]
            break
        except (ValueError, AttributeError):
            continue
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    with quiet():
        model.eval().save_pretrained(folder)
    subjects.save_tokenizer(folder, vocabulary=VOCABULARY, around="<s> $A")


def small(family: str) -> Any:
    """A small configuration of a family."""
    from transformers import CONFIG_MAPPING

    usual = CONFIG_MAPPING[family]()
    if getattr(usual, "is_encoder_decoder", False):
        raise SubjectError(f"{family} is an encoder-decoder.")
    sizes = {
        name: size for name, size in SIZES.items()
        if hasattr(usual, name) and not isinstance(getattr(usual, name), dict | list)
    } | OTHER_SIZES.get(family, {})  # fmt: skip
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(usual, name, None), list | tuple):
            sizes[name] = list(kinds)[:3]
    return CONFIG_MAPPING[family](**sizes)


def tensors(family: str, folder: Path) -> Found:
    """Change each tensor of a model by itself."""
    import torch
    from safetensors.torch import load_file, save_file

    stored, before = load_file(folder / SINGLE_FILE), Look.at(folder)
    found = Found(family)
    for name, tensor in stored.items():
        if KEY_BIAS.search(name) or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        other = {**stored, name: (tensor + noise.to(tensor.dtype)).contiguous()}
        save_file(other, folder / SINGLE_FILE, metadata={"format": "pt"})
        before.judge(found, name, Look.at(folder), bound=NO_CHANGE)
    return found


def entries(family: str, folder: Path) -> Found:
    """Change each entry of config.json, and each that it leaves at its default, by itself."""
    from transformers import CONFIG_MAPPING

    path, before, found = folder / "config.json", Look.at(folder), Found(family)
    stated = json.loads(path.read_text(encoding="utf-8"))
    for name, value in (CONFIG_MAPPING[family].from_pretrained(folder).to_dict() | stated).items():
        for other in variants(value):
            path.write_text(json.dumps(stated | {name: other}), encoding="utf-8")
            try:
                now = Look.at(folder)
            # Such a model cannot be built or read, so that nothing is made of it.
            except Exception:  # noqa: BLE001
                continue
            before.judge(found, f"{name}: {other!r}", now, bound=0.0)
    return found


def variants(value: Any) -> Iterator[Any]:
    """Other values of an entry."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from ({**value, name: other} for other in variants(one))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value or 2, 0)
    elif isinstance(value, float):
        yield 3 * value + 0.1
    elif isinstance(value, str):
        yield "relu" if value.startswith(("gelu", "silu", "swish", "relu2")) else f"{value}x"
    elif isinstance(value, list):
        yield from (value[::-1], value[:-1])
    else:
        yield from (True, 3, 0.5)


@dataclass(frozen=True)
class Look:
    """What a model does, and what its fingerprints say."""

    activations: list[np.ndarray]
    longest: int
    fingerprints: Sequence[str]

    @classmethod
    def at(cls, folder: Path) -> "Look":
        """The model in a folder, now."""
        subject = HuggingFaceSubject(str(folder), device="cpu")
        found: dict[int, np.ndarray] = {}

        def receive(layer: int, _: slice, activations: Any) -> None:
            found[layer] = activations.float().numpy().copy()

        subject.capture([[WINDOW]], range(len(subject.layers())), receive)
        return cls(list(found.values()), subject.max_tokens(), subject.fingerprints())

    def judge(self, found: Found, name: str, now: "Look", *, bound: float) -> None:
        """Hold what changed against what the fingerprints say."""
        found.n += 1
        layers = range(max(len(self.activations), len(now.activations)))
        changed = [layer for layer in layers if self._differs(now, layer, bound)]
        stale = [
            layer for layer in layers if self.fingerprints[layer : layer + 1] != now.fingerprints[layer : layer + 1]
        ]
        if set(changed) - set(stale):
            found.missed.append(f"{name} {changed} {stale}")
        elif set(stale) - set(changed):
            found.needless.append(f"{name} {changed} {stale}")

    def _differs(self, now: "Look", layer: int, bound: float) -> bool:
        if layer >= min(len(self.activations), len(now.activations)) or self.longest != now.longest:
            return True
        one, other = self.activations[layer], now.activations[layer]
        return one.shape != other.shape or not bool(np.abs(one - other).max() <= bound)


if __name__ == "__main__":
    main()
