"""The local language model: a causal model of Hugging Face in this process, as another model behind the same door.

`local:FOLDER` names it, where others have the name of a provider's model. Its logits are exact, a place of a prompt is read
as cheaply as a token is written, and the beginning that a request shares with the one before is not computed again.

Where its tokenizer spells 10 as a 1 and a 0, what is likely in the place of a number of a prompt is given by whole numbers all
the same: a 10 has the probability of the 1 times that of a 0 after it, and a 1 what is left of that.

It answers in the form of an endpoint, so that what is kept, counted and read is the same. It is greedy at temperature 0, and
promises no JSON; weights are safetensors only, and no code of a repository is run.
"""

import json
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from pipeline.errors import LanguageModelError, SubjectError
from pipeline.ports import LEAST_LOGPROB, Request
from pipeline.provenance import content_hash
from resources import checkpoint
from resources.local_encoder import LocalEncoder
from resources.model_folder import ModelFolder, first_line, quiet

SCHEME = "local:"
LIKELIEST = 20
"""Tokens that are kept of what is likely in each place."""


def is_local(model: str) -> bool:
    """Whether a model's name says that it runs in this process."""
    return model.startswith(SCHEME)


class LocalModel:
    """A causal language model of a folder, or of a name on the hub; loaded when something is asked.

    Raises:
        LanguageModelError: from every method, if there is no such model, or it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._ids: list[int] = []
        self._cache: Any = None
        self._likely: dict[int, list[tuple[int, float]]] = {}
        """By place, the likely tokens after the token at it, of those that are in the cache."""

    @cached_property
    def fingerprint(self) -> str:
        """`local:` and the tagged hash of weights, configuration and tokenizer."""
        try:
            folder = self._folder.whole
            hashes = checkpoint.tensor_hashes(checkpoint.stored_tensors(folder))
            parts = [hashes, checkpoint.config_hash(folder), checkpoint.tokenizer_hash(folder)]
        except SubjectError as error:
            raise self._unusable(error) from error
        return SCHEME + content_hash(parts)

    def respond(self, request: Request) -> bytes:
        """The answer to a request, as the body that an endpoint would send."""
        if request.messages[0][0] == "embed":
            return self._encoder.respond(request.messages[0][1], served=self.fingerprint)
        prompt = request.messages[0][1] if request.messages[0][0] == "prompt" else None
        ids, starts = self._chat(request.messages) if prompt is None else self._plain(prompt)
        begin = len(ids) - len(starts)
        if len(ids) + request.max_tokens > self._most:
            raise LanguageModelError(
                f"{SCHEME}{self.name} reads at most {self._most:,} tokens, and a request has {len(ids):,} and may get "
                f"{request.max_tokens:,} more; take another model, shorter windows (`--length`), or another `--simulation`"
            )
        usage = {"prompt_tokens": len(ids), "completion_tokens": 0}
        choice: dict[str, Any] = {"index": 0}
        if prompt is not None and request.echo:
            at = {start: begin + place for place, start in enumerate(starts)}
            wanted = [at[place] for place in request.echo if at.get(place)]
            self._run(ids, [place - 1 for place in wanted])
            numbers = self._numbers(ids, wanted)
            tops = [None] * begin + [numbers.get(place) for place in at.values()]
            spelled = [self._spell(one) for one in ids]
            for place in wanted:
                if self._ten is not None and tuple(ids[place : place + 2]) == self._ten:
                    spelled[place : place + 2] = ["10", ""]
            choice |= {"text": prompt, "finish_reason": "length"}
            choice["logprobs"] = {"tokens": spelled, "token_logprobs": [None] * len(ids), "top_logprobs": tops}
        elif prompt is not None and request.told_from:
            (found,) = self._tokenizer.tokenize([prompt])
            own = [None, *self._own(ids)]
            pieces = [*self._tokenizer.spell(ids[:begin]), *found.pieces]
            choice |= {"text": prompt, "finish_reason": "length"}
            choice["logprobs"] = {"tokens": [_spelled(piece) for piece in pieces], "token_logprobs": own}
        else:
            said, finish = self._written(ids, request)
            usage["completion_tokens"] = len(said)
            text = b"".join(self._tokenizer.spell([token for token, _ in said])).decode(errors="replace")
            tokens = [_in_chat(self._spell(token), top) for token, top in said]
            if self._gives_numbers_whole(request) and said:
                self._run(ids, [len(ids) - 1])
                number = "10" if tuple(token for token, _ in said[:2]) == self._ten else tokens[0]["token"]
                tokens = [_in_chat(number, self._numbers(ids, [len(ids)])[len(ids)])]
            choice |= {"finish_reason": finish, "logprobs": {"content": tokens} if request.logprobs else None}
            choice |= {"message": {"role": "assistant", "content": text}} if prompt is None else {"text": text}
        body = {"model": self.fingerprint, "choices": [choice], "usage": usage}
        return json.dumps(body, ensure_ascii=True).encode()

    def endpoint(self, request: Request) -> str:
        """The endpoint of a request: what the model is made of, and that it gives numbers whole where it does."""
        return self.fingerprint + ("+whole-numbers" if self._gives_numbers_whole(request) else "")

    def _gives_numbers_whole(self, request: Request) -> bool:
        """Whether what is likely in the place of a number is given by whole numbers, though a 10 is two tokens."""
        of_a_prompt = request.messages[0][0] == "prompt" and request.logprobs and not request.told_from
        return bool(of_a_prompt) and self._ten is not None

    # What it reads and writes

    def _plain(self, prompt: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt, special ones before it included, and where each of the others begins, in characters."""
        (found,) = self._tokenizer.tokenize([prompt])
        starts = list(accumulate((len(piece.decode(errors="replace")) for piece in found.pieces[:-1]), initial=0))
        return [*self._tokenizer.prefix, *found.ids], starts

    def _chat(self, messages: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """The tokens of a conversation as the model was trained on it; of a model that was not, as a plain text."""
        said = [{"role": role, "content": text} for role, text in messages]
        if not self._template.chat_template:
            lines = [f"{role}: {text}\n\n" for role, text in messages]
            return self._plain("".join(lines) + "assistant:")
        try:
            text = self._template.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a stranger's program
            raise self._unusable(error) from error
        return list(self._template(text, add_special_tokens=False)["input_ids"]), []

    def _written(self, ids: Sequence[int], request: Request) -> tuple[list[tuple[int, dict[str, float]]], str]:
        """The tokens that it goes on with, each with the likely ones in its place, and why it stops."""
        import torch

        generator = torch.Generator().manual_seed(request.seed)
        ids = list(ids)
        said: list[tuple[int, dict[str, float]]] = []
        for _ in range(request.max_tokens):
            last = len(ids) - 1
            if request.temperature > 0:
                self._likely.pop(last, None)
                (row,) = self._run(ids, [last])
                shares = (row / request.temperature).softmax(dim=-1)
                token = int(torch.multinomial(shares, 1, generator=generator))
            else:
                self._run(ids, [last])
                token = self._likely[last][0][0]
            if token in self._ends:
                return said, "stop"
            said.append((token, self._top(last)))
            ids.append(token)
        return said, "length"

    def _top(self, place: int) -> dict[str, float]:
        """The likely tokens after the token at a place, as text; what is spelled alike is taken together."""
        found: dict[str, float] = {}
        for token, logprob in self._likely[place]:
            text = self._spell(token)
            found[text] = logprob if text not in found else math.log(math.exp(found[text]) + math.exp(logprob))
        return found

    def _numbers(self, ids: Sequence[int], places: Sequence[int]) -> dict[int, dict[str, float]]:
        """What is likely at these places, after the tokens before each, which were run: a 10 is told from a 1."""
        found = {place: self._top(place - 1) for place in places}
        if self._ten is None:
            return found
        one, zero = self._ten
        # From the last on, so that what stands before the others is still in the cache.
        for place in sorted(places, reverse=True):
            if (begun := dict(self._likely[place - 1]).get(one)) is None:
                continue
            self._run([*ids[:place], one], [place])
            on = math.exp(dict(self._likely[place]).get(zero, -math.inf))
            numbers = {text: logprob for text, logprob in found[place].items() if text not in ("1", "10")}
            shares = (("1", 1 - on), ("10", on))
            found[place] = numbers | {text: begun + math.log(share) for text, share in shares if share > 0}
        return found

    def _spell(self, token: int) -> str:
        """A token as text; its bytes where they are no whole characters, so that two of them are told apart."""
        return _spelled(self._tokenizer.spell([token])[0])

    # What it computes

    def _run(self, ids: Sequence[int], places: Sequence[int]) -> Any:
        """See that it is known what is likely after the tokens at these places; the logits of those not known before.

        What the tokens share with those of the last call is taken from its cache.
        """
        import torch

        pairs = enumerate(zip(ids, self._ids, strict=False))
        shared = next((at for at, (one, other) in pairs if one != other), min(len(ids), len(self._ids)))
        unknown = [place for place in places if place >= shared or place not in self._likely]
        if not unknown:
            return []
        shared = min(shared, *unknown)
        self._likely = {place: found for place, found in self._likely.items() if place < shared}
        if self._cache is not None and shared:
            if shared < len(self._ids):
                self._cache.crop(shared - len(self._ids))
        else:
            self._cache, shared = None, 0
        unknown = [place for place in places if place not in self._likely]
        # Until it has gone well, nothing is known of the cache.
        cache, self._cache, self._ids = self._cache, None, []
        model = self._model
        try:
            with torch.inference_mode():
                made = model(
                    input_ids=torch.tensor([list(ids[shared:])]),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=torch.tensor([place - shared for place in unknown]),
                )
                rows = made.logits[0].float()
                top = rows.log_softmax(dim=-1).topk(min(LIKELIEST, rows.shape[-1]))
        except Exception as error:  # a stranger's model may take none of these arguments, or too much memory
            raise self._unusable(error) from error
        self._cache, self._ids = made.past_key_values, list(ids)
        for place, tokens, logprobs in zip(unknown, top.indices.tolist(), top.values.tolist(), strict=True):
            self._likely[place] = [
                pair for pair in zip(tokens, logprobs, strict=True) if pair[1] >= LEAST_LOGPROB or pair[0] == tokens[0]
            ]
        return rows

    def _own(self, ids: Sequence[int]) -> list[float]:
        """The logarithm of the probability of each token but the first, by those before it; nothing is taken from a cache."""
        import torch

        try:
            with torch.inference_mode():
                given = torch.tensor([list(ids)])
                shares = self._model(input_ids=given, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
                own: list[float] = shares.gather(1, given[0, 1:, None])[:, 0].tolist()
        except Exception as error:  # a stranger's model may take none of these arguments, or too much memory
            raise self._unusable(error) from error
        return own

    # What it is made of

    @cached_property
    def _encoder(self) -> LocalEncoder:
        return LocalEncoder(self.name, self._folder)

    @cached_property
    def _folder(self) -> ModelFolder:
        try:
            return ModelFolder(self.name)
        except SubjectError as error:
            raise self._unusable(error) from error

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM

        try:
            folder = self._folder.whole
            # Reading the headers first gives a clear word on files that were cut short, or are pickled.
            checkpoint.stored_tensors(folder)
            with quiet():
                loading: Any = AutoModelForCausalLM.from_pretrained
                model, report = loading(
                    folder, dtype="float32", use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
        except Exception as error:  # any fault in a stranger's checkpoint ends here
            raise self._unusable(error) from error
        if missing := sorted(report["missing_keys"]):
            raise LanguageModelError(
                f"{SCHEME}{self.name}: its weights lack {missing[0]} and what else a causal language model needs"
            )
        return model.eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from resources.tokenizer import load_tokenizer

        try:
            return load_tokenizer(
                self._folder.whole, vocabulary=self._model.get_input_embeddings().num_embeddings, subject=self.name
            )
        except SubjectError as error:
            raise self._unusable(error) from error

    @cached_property
    def _template(self) -> Any:
        from transformers import AutoTokenizer

        with quiet():
            return AutoTokenizer.from_pretrained(self._folder.whole, trust_remote_code=False)

    @cached_property
    def _ten(self) -> tuple[int, int] | None:
        """The tokens of 1 and 0, if a 10 is spelled with them after a tab; None if it is a token of its own."""
        *_, one, zero = 0, 0, *map(int, self._template("\t10", add_special_tokens=False)["input_ids"])
        spelled = self._template.convert_ids_to_tokens([one, zero])
        return (one, zero) if spelled == ["1", "0"] else None

    @cached_property
    def _ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        found = self._model.generation_config.eos_token_id
        return frozenset(found if isinstance(found, list) else [] if found is None else [found])

    @cached_property
    def _most(self) -> int:
        """The longest text that it reads, in tokens."""
        return int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    def _unusable(self, error: Exception) -> LanguageModelError:
        return LanguageModelError(f"{SCHEME}{self.name} cannot be used: {first_line(error)}")


def _spelled(piece: bytes) -> str:
    """A token as text; its bytes where they are no whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _in_chat(token: str, top: dict[str, float]) -> dict[str, Any]:
    likely = [{"token": text, "logprob": logprob} for text, logprob in top.items()]
    return {"token": token, "logprob": top.get(token), "top_logprobs": likely}
