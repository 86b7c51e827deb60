"""The local encoder: a model of Hugging Face in this process that turns a text into a vector.

A folder that sentence-transformers wrote says in `1_Pooling/config.json` how the vectors of a text's tokens become one:
their mean, that of the first token, or that of the last. Without such a file it is the mean. The vector has length 1.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pipeline.errors import LanguageModelError, SubjectError
from resources import checkpoint
from resources.model_folder import ModelFolder, first_line, quiet

POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "pooling_mode_lasttoken": "last"}


BATCH = 64
"""Texts that go through it at once."""


class LocalEncoder:
    """The encoder of a folder, loaded when something is asked. Weights are safetensors only.

    Raises:
        LanguageModelError: from `respond`, if it cannot be loaded, or pools in a way that is not known here.
    """

    def __init__(self, name: str, folder: ModelFolder) -> None:
        self.name = name
        self._folder = folder

    def respond(self, text: str, *, served: str) -> bytes:
        """The vector of a text, as the body that an endpoint would send. What is too long for the model is cut."""
        import torch

        try:
            with torch.inference_mode():
                tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self.most_tokens)
                states = self._model(**tokens).last_hidden_state[0].float()
                vector = torch.nn.functional.normalize(self._pooled(states), dim=0).tolist()
        except LanguageModelError:
            raise
        except Exception as error:  # a stranger's model may take none of these arguments, or too much memory
            raise self._unusable(error) from error
        n_tokens = len(states)
        body = {
            "object": "list",
            "model": served,
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
        return json.dumps(body).encode()

    def vectors(self, texts: Sequence[str]) -> Any:
        """The vectors of many texts, float32 (text, axis), each of length 1; alike lengths go together."""
        import torch

        found: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
        for begin in range(0, len(order), BATCH):
            places = order[begin : begin + BATCH]
            # A tokenizer takes no half of a character.
            given = [texts[place].encode("utf-8", errors="replace").decode() for place in places]
            try:
                with torch.inference_mode():
                    tokens = self._tokenizer(
                        given, return_tensors="pt", truncation=True, max_length=self.most_tokens, padding=True
                    )
                    states = self._model(**tokens).last_hidden_state.float()
                    lengths = tokens["attention_mask"].sum(dim=1).tolist()
                    for place, one, length in zip(places, states, lengths, strict=True):
                        found[place] = torch.nn.functional.normalize(self._pooled(one[:length]), dim=0)
            except LanguageModelError:
                raise
            except Exception as error:  # a stranger's model may take none of these arguments, or too much memory
                raise self._unusable(error) from error
        return torch.stack(found).numpy()

    def _pooled(self, states: Any) -> Any:
        """One vector of those of the tokens (token, axis)."""
        return {"mean": states.mean(dim=0), "first": states[0], "last": states[-1]}[self.pooling]

    @cached_property
    def pooling(self) -> str:
        """How the vectors of tokens become one: `mean`, `first` or `last`."""
        modules = self._folder.whole / "modules.json"
        for one in json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else ():
            if str(one.get("type")).rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize"):
                raise LanguageModelError(f"local:{self.name} has a part {one.get('type')!r}, which is not known here")
        file = self._folder.whole / "1_Pooling" / "config.json"
        if not file.is_file():
            return "mean"
        said = json.loads(file.read_text(encoding="utf-8"))
        chosen = [name for name, value in said.items() if name.startswith("pooling_mode") and value is True]
        if len(chosen) != 1 or chosen[0] not in POOLING:
            raise LanguageModelError(
                f"local:{self.name} pools by {chosen}; known are {', '.join(POOLING)}, one at a time"
            )
        return POOLING[chosen[0]]

    @cached_property
    def most_tokens(self) -> int:
        """The longest text that it reads, in tokens: what the model can, or less if its folder says so."""
        said = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        file = self._folder.whole / "sentence_bert_config.json"
        stated = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
        return int(min(said, self._tokenizer.model_max_length, stated or 1 << 30))

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        try:
            folder = self._folder.whole
            # Reading the headers first gives a clear word on files that were cut short, or are pickled.
            checkpoint.stored_tensors(folder)
            with quiet():
                loading: Any = AutoModel.from_pretrained
                model, report = loading(
                    folder, dtype="float32", use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
        except SubjectError as error:
            raise self._unusable(error) from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise LanguageModelError(f"local:{self.name}: its weights lack {missing[0]} and what else an encoder needs")
        return model.eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with quiet():
            found: Any = AutoTokenizer.from_pretrained(self._folder.whole, trust_remote_code=False)
        found.padding_side = "right"
        if found.pad_token_id is None:
            found.pad_token = found.eos_token
        return found

    def _unusable(self, error: Exception) -> LanguageModelError:
        return LanguageModelError(f"local:{self.name} cannot be used: {first_line(error)}")
