"""The local encoder: a model of Hugging Face in this process that turns a text into a vector.

A folder that sentence-transformers wrote says in `1_Pooling/config.json` how the vectors of a text's tokens become one:
their mean, that of the first token, or that of the last. Without such a file it is the mean. The vector has length 1.
"""

import json
from functools import cached_property
from typing import Any

from pipeline.errors import LanguageModelError, SubjectError
from resources import checkpoint
from resources.model_folder import ModelFolder, first_line, quiet

POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "pooling_mode_lasttoken": "last"}


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
                tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._most)
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

    def _pooled(self, states: Any) -> Any:
        """One vector of those of the tokens (token, axis)."""
        return {"mean": states.mean(dim=0), "first": states[0], "last": states[-1]}[self._pooling]

    @cached_property
    def _pooling(self) -> str:
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
    def _most(self) -> int:
        """The longest text that it reads, in tokens."""
        said = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        return int(min(said, self._tokenizer.model_max_length))

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
            return AutoTokenizer.from_pretrained(self._folder.whole, trust_remote_code=False)

    def _unusable(self, error: Exception) -> LanguageModelError:
        return LanguageModelError(f"local:{self.name} cannot be used: {first_line(error)}")
