"""The encoder of explanations: texts as vectors, from a model in this process or an endpoint's `/v1/embeddings`.

    local:FOLDER     a sentence encoder of Hugging Face, such as all-MiniLM-L6-v2 (`local:demo` is the one of the demo)
    another name     a model of the endpoint, through the same door as all that is asked: each text is sent and paid for once

What is computed here is not kept as a reply: it costs nothing, and the table that it goes to names the weights.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import LanguageModelError, SubjectError
from pipeline.meaning import unit, unpacked
from pipeline.ports import Request, Usage, Vector
from pipeline.provenance import content_hash
from resources import checkpoint
from resources.language import OpenAICompatible
from resources.local_encoder import LocalEncoder
from resources.local_language import SCHEME, is_local
from resources.model_folder import ModelFolder, first_line


def open_encoder(name: str, language: OpenAICompatible) -> "EncoderHere | EncoderThere":
    """The encoder of this name; nothing is loaded or sent yet."""
    return EncoderHere(name) if is_local(name) else EncoderThere(name, language)


class EncoderHere:
    """A sentence encoder in this process. `name` begins with `local:`.

    Raises:
        LanguageModelError: from every method, if there is no such model, or it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        """`local:` and the tagged hash of weights, configuration, tokenizer, pooling and longest text."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        folder, model = self._folder, self._model
        try:
            hashes = checkpoint.tensor_hashes(checkpoint.stored_tensors(folder))
            parts = [hashes, checkpoint.config_hash(folder), checkpoint.tokenizer_hash(folder)]
            return SCHEME + content_hash([*parts, model.pooling, model.most_tokens])
        except (SubjectError, OSError) as error:
            raise self._unusable(error) from error

    def provenance(self) -> Mapping[str, Any]:
        """What an auditor must know to find the same encoder: file hashes, pooling, versions."""
        import torch
        import transformers

        folder = self._folder
        files = [folder / "config.json", folder / "tokenizer.json", *checkpoint.weight_files(folder)]
        return {
            "name": self.name, "fingerprint": self.fingerprint(), "pooling": self._model.pooling,
            "most_tokens": self._model.most_tokens,
            "files": {file.name: checkpoint.file_hash(file) for file in files if file.is_file()},
            "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip

    def encode(self, texts: Sequence[str], *, run_id: str) -> tuple[Sequence[Vector], Usage]:  # noqa: ARG002 (no reply is kept)
        """One vector for each text, in their order. Longer texts than the encoder reads are cut, as it was made to."""
        if not texts:
            return [], Usage()
        vectors = [unit(values) for values in self._model.vectors(texts)]
        return [Vector(one, None if one is not None else "unparsable") for one in vectors], Usage()

    @cached_property
    def _folder(self) -> Path:
        try:
            return ModelFolder(self.name.removeprefix(SCHEME)).whole
        except SubjectError as error:
            raise self._unusable(error) from error

    @cached_property
    def _model(self) -> LocalEncoder:
        name = self.name.removeprefix(SCHEME)
        try:
            return LocalEncoder(name, ModelFolder(name))
        except SubjectError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LanguageModelError:
        return LanguageModelError(f"{self.name} cannot be used: {first_line(error)}")


class EncoderThere:
    """A model behind `/v1/embeddings`, asked through the door that keeps every reply."""

    def __init__(self, name: str, language: OpenAICompatible) -> None:
        self.name = name
        self._language = language

    def fingerprint(self) -> str:
        """The tagged hash of the endpoint and the model's name: no one can see its weights."""
        return content_hash(["embeddings", self._language.endpoint, self.name])

    def provenance(self) -> Mapping[str, Any]:
        """What is known of it: its name and where it is."""
        return {"name": self.name, "endpoint": self._language.endpoint, "fingerprint": self.fingerprint()}

    def encode(self, texts: Sequence[str], *, run_id: str) -> tuple[Sequence[Vector], Usage]:
        """One vector for each text, in their order, or the reason why there is none.

        Raises:
            LanguageModelError: the endpoint cannot be used at all.
        """
        replies, usage = self._language.answer([request(self.name, text) for text in texts], run_id=run_id)
        found = []
        for reply in replies:
            values = None if reply.text is None else unpacked(reply.text)
            reason = reply.missing_because or (None if values is not None else "unparsable")
            found.append(Vector(values, reason, reply.request_id))
        return found, usage


def request(model: str, text: str) -> Request:
    """One text to be embedded."""
    return Request(model, (("embed", text),), temperature=0.0, max_tokens=0, seed=0, json_reply=False)
