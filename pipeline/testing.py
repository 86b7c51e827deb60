"""Testing: models and language models whose right answers are known, to try the whole pipeline on.

    planted_checkpoint        a small GPT-2 on disk, every neuron set by hand
    planted_gated_checkpoint  a small Llama on disk, with neurons that mean something on both sides of zero
    planted_corpus            texts in their words
    ScriptedLanguageModel     explains and simulates those neurons: rightly, wrongly, or not at all

The weights are no trained network but a drawing: in the residual stream every token has an axis of its own, every
position too, and what a neuron reads can be seen in its column. All states of one place in the network have the same
mean and variance, so the norms, given the weights that undo them, pass everything on as it is.

    layer 0   token + position                                neurons read tokens
    layer 1   token + position + (which word stood before)    neurons read tokens and what stood before
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import prompts
from pipeline.digits import DIGITS_ONLY
from pipeline.errors import SettingsError
from pipeline.json_sparse_simulator import END
from pipeline.ports import Likely, Reply, Request, Usage
from pipeline.provenance import content_hash
from pipeline.scripted_tokens import NEARLY_CERTAIN, ScriptedToken, around, embedding, tokens, top
from pipeline.tables import MISSING

if TYPE_CHECKING:
    import torch

POSITIONS = 64
"""Longest window in tokens that the planted models read."""

GROUPS: dict[str, tuple[str, ...]] = {
    "colours": ("red", "blue", "green", "yellow", "purple"),
    "animals": ("cat", "dog", "horse", "sheep", "mouse"),
    "foods": ("bread", "cheese", "soup", "apple", "rice"),
    "weather": ("rain", "snow", "wind", "storm", "fog"),
    "months": ("january", "march", "june", "august", "october"),
    "tools": ("hammer", "saw", "nail", "axe", "rope"),
    "numbers": ("two", "five", "seven", "eleven", "thirty"),
    "music": ("music",),
    "ship": ("ship",),
}
"""Words that some neuron fires on."""

PAIRS = (("river", "bank"), ("traffic", "light"), ("ice", "cream"))
"""The second word fires its neuron right after the first, and nowhere else."""

COMMON = (
    "the", "a", "of", "and", "to", "in", "was", "with", "for", "on", "at", "from", "by", "she", "he", "they",
    "old", "new", "small", "house", "road", "garden", "went", "came", "took", "gave", "made", "near", "over", "then",
)  # fmt: skip
"""Words that no neuron fires on but the one that always does."""

TOPIC_SHARE = 0.2
"""Share of a text's places that go to its topics; three topics of twelve, so each has about one place in fifteen."""

Kind = Literal["tokens", "after", "never", "always", "both"]


@dataclass(frozen=True)
class PlantedNeuron:
    """What one neuron does in one polarity, by construction."""

    layer: int
    neuron: int
    what: str
    """A right explanation."""
    wrong: str
    """An explanation that is right for another neuron, and says nothing of this one."""
    tokens: tuple[str, ...]
    """Words that it fires on; none if it never fires, or fires on everything."""
    after: str | None
    """The word that must stand right before."""
    kind: Kind
    """`both`: fires in this polarity on these words, and in the other on others."""
    polarity: str = "+"

    def fires(self, words: Sequence[str]) -> list[bool]:
        """Whether it fires at each token of a window; white space around a token does not matter."""
        return _firing(self.tokens, self.after, words) if self.kind != "always" else [True] * len(words)


@dataclass(frozen=True)
class Planted:
    """A checkpoint folder, and the truth about all of its neurons: one entry for each polarity in which one fires,
    and one for each neuron that never does."""

    folder: Path
    neurons: tuple[PlantedNeuron, ...]


def planted_checkpoint(folder: Path) -> Planted:
    """Write a GPT-2 of two layers with eight neurons each, tokenizer included, and say what its neurons do.

    A neuron that fires gives 3 to 6, a silent one between -0.01 and 0 (GELU of -3 or less). The dead ones are silent
    everywhere. The constant ones give one and the same number everywhere, to the bit.
    """
    import torch
    from transformers import GPT2Config, GPT2Model

    token = {word: index for index, word in enumerate(_vocabulary())}
    position = range(len(token), len(token) + POSITIONS)
    before = {word: position.stop + index for index, (word, _) in enumerate(PAIRS)}
    something_else = position.stop + len(PAIRS)
    width = something_else + 1
    neurons = _planted_neurons()
    config = GPT2Config(
        vocab_size=len(token),
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=2,
        n_head=1,
        n_inner=1 + max(neuron.neuron for neuron in neurons),
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = GPT2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.wte.weight[:, : len(token)] = torch.eye(len(token))
        model.wpe.weight[:, position.start : position.stop] = torch.eye(POSITIONS)
        for layer, block in enumerate(model.h):
            _undo_layer_norm(block.ln_1, ones=2)
            _undo_layer_norm(block.ln_2, ones=2 + layer)
        # The attention of layer 1 looks at the token before and writes which word it is. Position 0 looks at itself.
        query, key, value = model.h[1].attn.c_attn.weight.split(width, dim=1)
        for place in range(POSITIONS):
            query[position[place], position[max(place - 1, 0)]] = 60 * math.sqrt(width)  # exp(-60) is nothing
            key[position[place], position[place]] = 1
        for word, axis in token.items():
            value[axis, before.get(word, something_else)] = 1
        for axis in (*before.values(), something_else):
            model.h[1].attn.c_proj.weight[axis, axis] = 1
        for planted in neurons:
            into = model.h[planted.layer].mlp.c_fc
            into.bias[planted.neuron] = 3 if planted.kind == "always" else -3 if planted.after is None else -9
            for index, word in enumerate(planted.tokens):
                into.weight[token[word], planted.neuron] = 7 + index / 2 if planted.after is None else 6
            if planted.after is not None:
                into.weight[before[planted.after], planted.neuron] = 6
    _write(folder, model)
    return Planted(folder=folder, neurons=neurons)


def planted_gated_checkpoint(folder: Path) -> Planted:
    """Write a Llama of one layer with four neurons, tokenizer included, and say what its neurons do.

    The gate is open everywhere, so a neuron is what its other map reads: about 4 to 6 on a word of its own, as much
    below zero on a word of the other side, and exactly 0 on all others.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    token = {word: index for index, word in enumerate(_vocabulary())}
    always = len(token)
    width = always + 1 + (always + 1) % 2  # rotary positions need an even number
    neurons = _planted_gated_neurons()
    config = LlamaConfig(
        vocab_size=len(token),
        hidden_size=width,
        intermediate_size=1 + max(neuron.neuron for neuron in neurons),
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = LlamaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed_tokens.weight[:, : len(token)] = torch.eye(len(token))
        model.embed_tokens.weight[:, always] = 1
        block = model.layers[0]
        block.post_attention_layernorm.weight.fill_(math.sqrt(2 / width + config.rms_norm_eps))
        block.mlp.gate_proj.weight[:, always] = 4
        for planted in neurons:
            if planted.kind == "always":
                block.mlp.up_proj.weight[planted.neuron, always] = 1
            for index, word in enumerate(planted.tokens):
                strength = 1 + index / 8
                block.mlp.up_proj.weight[planted.neuron, token[word]] = (
                    -strength if planted.polarity == "-" else strength
                )
    _write(folder, model)
    return Planted(folder=folder, neurons=neurons)


def planted_corpus(n_documents: int, seed: int) -> list[str]:
    """Distinct texts of 70 to 120 words of the planted vocabulary; the same for the same `seed`.

    A text has three topics, so most neurons are silent in most texts. The second word of a pair stands more often
    without the first than right after it.
    """
    draw = random.Random(seed)  # noqa: S311 (no secret)
    topics = [*GROUPS.values(), *((f"{first} {second}", second, second, first) for first, second in PAIRS)]
    texts: dict[str, None] = {}
    while len(texts) < n_documents:
        chosen = draw.sample(topics, 3)
        words: list[str] = []
        n_words = draw.randint(70, 120)
        while len(words) < n_words:
            spoken = draw.choice(draw.choice(chosen)) if draw.random() < TOPIC_SHARE else draw.choice(COMMON)
            words += spoken.split()
        texts[" ".join(words) + "."] = None
    return list(texts)


class ScriptedLanguageModel:
    """A language model in this process that knows the planted truth.

    Asked to explain, it looks for the planted neuron that fires just where the excerpts are active, and gives its
    right explanation, or its `wrong` one; if there is none, it declines (`refused`), or with `naming` names the strongest
    tokens instead. Asked to simulate, it goes by the
    words of the explanation alone: 10 wherever they say that the neuron fires, 0 elsewhere. A share `failing` of all
    requests, drawn by `seed` and content, ends with `reason`, however often it is sent.

    Raises:
        SettingsError: `failing` is no share, or `reason` is not a known one.
    """

    def __init__(
        self,
        planted: Planted,
        *,
        wrong: bool = False,
        naming: bool = False,
        failing: float = 0.0,
        reason: str = "timeout",
        seed: int = 0,
    ) -> None:
        if not 0 <= failing <= 1:
            raise SettingsError(f"`failing` (={failing}) must be a share from 0 to 1 of all requests")
        if reason not in MISSING:
            raise SettingsError(f"`reason` (={reason!r}) is not known; use one of {sorted(MISSING)}")
        self.planted = planted
        self.wrong = wrong
        self.naming = naming
        self.failing = failing
        self.reason = reason
        self.seed = seed
        self.sent = 0
        """Requests that were worked on, in all calls."""
        self.kept = 0
        """Requests that were answered from what was kept."""
        self._replies: dict[str, Reply] = {}

    def answer(self, requests: Sequence[Request], *, run_id: str) -> tuple[Sequence[Reply], Usage]:  # noqa: ARG002
        """One reply per request, in their order; one that repeats another is answered from what was kept."""
        sent = 0
        replies: list[Reply] = []
        failures: dict[str, int] = {}
        for request in requests:
            request_id = content_hash(asdict(request))
            reply = self._replies.get(request_id)
            if reply is None:
                sent += 1
                reply = self._answered(request, request_id)
                if reply.text is not None:
                    self._replies[request_id] = reply
            if reply.missing_because is not None:
                failures[reply.missing_because] = failures.get(reply.missing_because, 0) + 1
            replies.append(reply)
        self.sent += sent
        self.kept += len(requests) - sent
        return replies, Usage(requests_sent=sent, requests_kept=len(requests) - sent, failures=failures)

    def _answered(self, request: Request, request_id: str) -> Reply:
        drawn = hashlib.sha256(f"{self.seed}:{request_id}".encode()).digest()
        if int.from_bytes(drawn[:8], "big") < self.failing * 2**64:
            return Reply(request_id, None, self.reason)
        if request.messages[0][0] == "prompt":
            return _completed(request, request_id)
        if request.messages[0][0] == "embed":
            return Reply(request_id, json.dumps(embedding(request.messages[0][1])), None, model_served="scripted")
        question = request.messages[-1][1]
        told = request.messages[0][1]
        for name, file, reply_to in (
            ("explain", "explain.user.txt", self._explained),
            ("explain-highlight", "explain-highlight.user.txt", self._explained_marked),
            ("explain-highlight-values", "explain-highlight-values.user.txt", self._explained_marked),
            ("explain-highlight-reasoning", "explain-highlight-reasoning.user.txt", self._explained_reasoning),
            ("explain-next-token-pairs", "explain-next-token-pairs.user.txt", self._explained_next),
            ("explain-hypotheses", "explain-hypotheses.user.txt", self._explained_hypotheses),
            ("explain-revision", "explain-revision.user.txt", self._revised),
            ("explain-revision-random", "explain-revision-random.user.txt", self._revised),
            ("sentences", "sentences.user.txt", _sentences),
            ("explain-contrastive", "explain-contrastive.user.txt", self._explained_marked),
            ("explain-summary", "explain-summary.user.txt", self._explained_places),
            ("explain-logits", "explain-logits.user.txt", self._explained_marked),
            ("explain-token-space", "explain-token-space.user.txt", self._explained_tokens),
            ("explain-token-space-weights", "explain-token-space-weights.user.txt", self._explained_tokens),
            ("simulate", "simulate.user.txt", _simulated),
            ("simulate-9", "simulate.user.txt", _simulated_digits),
            ("simulate-schema", "simulate.user.txt", _simulated_object),
            ("simulate-many", "simulate-many.user.txt", _simulated_many),
            ("simulate-sparse", "simulate-sparse.user.txt", _simulated_sparse),
            ("simulate-closed", "simulate-sparse.user.txt", _simulated_closed),
            ("detect", "detect.user.txt", _judged),
            ("fuzz", "fuzz.user.txt", _judged),
            ("intruder", "intruder.user.txt", _intruder),
        ):
            beginning = prompts.load(file).text.partition("$")[0]
            # A request for another language than English is told so at the end.
            here, _, language = told.partition(prompts.load(f"{name}.system.txt").fill())
            if not here and told and question.startswith(beginning):
                text = reply_to(question.removeprefix(beginning))
                text = _in_french(text) if text and " French" in language else text
                likely = likely_of(tokens(text)) if text and request.logprobs else None
                return Reply(request_id, text, None if text else "refused", model_served="scripted", likely=likely)
        return Reply(request_id, None, "refused", model_served="scripted")

    def _explained(self, question: str) -> str | None:
        """The explanation of the neuron whose firing agrees best with excerpts of (token, activation) pairs."""
        excerpts, _ = json.JSONDecoder().raw_decode(question)
        return self._said(excerpts)

    def _explained_marked(self, question: str) -> str | None:
        """The same from pieces of text, where an active token is a list of its own. Other lines are passed over."""
        excerpts = [
            [
                (word, int(isinstance(piece, list)))
                for piece in json.loads(line)
                for word in re.findall(r"\s*\S+", piece[0] if isinstance(piece, list) else piece)
            ]
            for line in question.splitlines()
            if line.startswith("[")
        ]
        return self._said(excerpts)

    def _explained_places(self, question: str) -> str | None:
        """The same from active tokens, each with what stands before it."""
        excerpts = []
        for line in question.splitlines():
            before, token, activation = json.loads(line)
            excerpts.append([*((word, 0) for word in re.findall(r"\s*\S+", before)), (token, activation)])
        return self._said(excerpts)

    def _explained_reasoning(self, question: str) -> str | None:
        """The same as from marked text, and why."""
        found = self._explained_marked(question)
        return json.dumps({"reasoning": "It is in the script.", **json.loads(found)}) if found else None

    def _explained_hypotheses(self, question: str) -> str | None:
        """The same as from marked text, and before it what is right for other neurons."""
        number, _, marked = question.partition("\n")
        found = self._explained_marked(marked.partition("\n")[2])
        if found is None:
            return None
        right = json.loads(found)["explanation"]
        others = dict.fromkeys(neuron.what for neuron in self.planted.neurons if neuron.what != right)
        return json.dumps({"explanations": [*list(others)[: int(number) - 1], right]})

    def _revised(self, question: str) -> str | None:
        """What is right, whatever was said before, from marked text."""
        excerpts = "\n".join(line for line in question.splitlines() if line.startswith("["))
        return type(self)(self.planted, naming=self.naming)._explained_marked(excerpts)

    def _explained_next(self, question: str) -> str | None:
        """The same from active tokens, each with the one after it."""
        places = (json.loads(line) for line in question.splitlines())
        return self._said([[(token, activation), (after, 0)] for token, after, activation in places])

    def _explained_tokens(self, question: str) -> str | None:
        """The same from a list of tokens, those of half the strongest value and more taken for active."""
        return self._said([[(token, int(value >= 5))] for token, value in json.loads(question)])

    def _said(self, excerpts: Sequence[Sequence[tuple[str, int]]]) -> str | None:
        active = [activation > 0 for excerpt in excerpts for _, activation in excerpt]

        def agreement(neuron: PlantedNeuron) -> float:
            firing = [fires for excerpt in excerpts for fires in neuron.fires([token for token, _ in excerpt])]
            both, either = (sum(map(rule, active, firing)) for rule in (bool.__and__, bool.__or__))
            return both / either if either else 0.0

        found = max(self.planted.neurons, key=agreement)
        if agreement(found) < 0.5:
            return _naming(excerpts) if self.naming else None
        return json.dumps({"explanation": found.wrong if self.wrong else found.what})


def _naming(excerpts: Sequence[Sequence[tuple[str, int]]]) -> str | None:
    """An explanation of any neuron: its tokens with the highest mean activation, in quotes."""
    sums: dict[str, list[int]] = {}
    for excerpt in excerpts:
        for token, activation in excerpt:
            sums.setdefault(token.strip(), []).append(activation)
    means = {word: sum(found) / len(found) for word, found in sums.items() if word and '"' not in word and any(found)}
    named = sorted(means, key=lambda word: (-means[word], word))[:3]
    return json.dumps({"explanation": " or ".join(f'"{word}"' for word in named)}) if named else None


def scripted(*, naming: bool = True) -> "ScriptedLanguageModel":
    """A language model that knows all planted neurons, and of others names the strongest tokens."""
    neurons = (*_planted_neurons(), *_planted_gated_neurons())
    return ScriptedLanguageModel(Planted(Path(), neurons), naming=naming)


def _sentences(question: str) -> str:
    """Ten sentences with a word that an explanation names, and ten without, in planted words."""
    quoted = re.findall('"([^"]+)"', json.loads(question)) or ["the"]
    plain = [" ".join(COMMON[place : place + 9]) for place in range(20)]
    fitting = [f"{text} {quoted[place % len(quoted)]}" for place, text in enumerate(plain[:10])]
    return json.dumps({"fitting": fitting, "other": plain[10:]})


def left_out(prompt: str) -> dict[int, dict[int, float]]:
    """Of each activation that a prompt of `pipeline.prompt_simulator` leaves out for its last excerpt: its place in
    characters, and the probability of each number there. None of any other prompt."""
    _, found, question = prompt.rpartition("\nExplanation: ")
    if not found:
        return {}
    explanation, _, excerpt = question.partition("\nExcerpt:\n")
    lines = [line.split("\t") for line in excerpt.split("\n")]
    if not all(len(line) == 3 for line in lines):
        return {}
    most = DIGITS_ONLY if prompt.startswith(prompts.load("simulate-prompt-9.txt").text.partition("$")[0]) else 10
    predicted = _predicted(json.loads(explanation), [(int(place), json.loads(token)) for place, token, _ in lines])
    places, end = {}, len(prompt) - len(excerpt)
    for (place, token, activation), (_, value) in zip(lines, predicted, strict=True):
        places[end + len(place) + len(token) + 2] = around(min(value, most))
        end += len(place) + len(token) + len(activation) + 3
    return places


def foretold(prompt: str, said: Sequence[ScriptedToken]) -> list[ScriptedToken]:
    """The tokens of a prompt; of one of `pipeline.surprisal`, words of its text that the description names are likely."""
    before, _, between = prompts.load("surprisal.txt").text.partition("$description")
    description, found, _ = prompt.removeprefix(before).partition(between)
    if not found or not prompt.startswith(before):
        return list(said)
    named = set(" ".join(re.findall('"([^"]+)"', description)).split())
    begin, place, told = len((before + description + between).encode()), 0, []
    for token in said:
        word = token.piece.decode(errors="replace").strip()
        chance = (0.9 if word in named else 0.1) if place >= begin else NEARLY_CERTAIN
        told.append(ScriptedToken(token.piece, {token.piece: chance}))
        place += len(token.piece)
    return told


def likely_of(said: Sequence[ScriptedToken]) -> tuple[Likely, ...]:
    """Scripted tokens as a reply holds them."""
    return tuple(
        Likely(
            token.piece.decode(errors="replace"), tuple((one.decode(errors="replace"), p) for one, p in top(token, 20))
        )
        for token in said
    )


def _completed(request: Request, request_id: str) -> Reply:
    """What comes after a prompt, or what is likely at some places of it."""
    prompt = request.messages[0][1]
    places = left_out(prompt)
    # A prompt may end where an activation comes next.
    text = f"{max(places[len(prompt)], key=places[len(prompt)].__getitem__)}\n" if len(prompt) in places else "\n"
    likely = None
    if request.logprobs and request.echo:
        at, place = {}, 0
        for one in tokens(prompt, values=places):
            at[place] = one
            place += len(one.piece)
        empty = Likely("", ())
        likely = tuple(likely_of([at[place]])[0] if place in at else empty for place in request.echo)
    elif request.told_from:
        told = foretold(prompt, tokens(prompt))
        ends = accumulate(len(one.piece) for one in told)
        begin = len(prompt[: request.told_from].encode())
        likely = likely_of([one for one, end in zip(told, ends, strict=True) if end > begin])
    elif request.logprobs:
        likely = likely_of(tokens(text))
    return Reply(request_id, text, None, model_served="scripted", likely=likely)


def _simulated(question: str) -> str:
    """Activations at numbered tokens, from an explanation in words."""
    explanation, end = json.JSONDecoder().raw_decode(question)
    numbered, _ = json.JSONDecoder().raw_decode(question, question.index("[", end))
    return json.dumps({"activations": _predicted(explanation, numbered)})


def _simulated_digits(question: str) -> str:
    """The same on the scale from 0 to 9."""
    pairs = json.loads(_simulated(question))["activations"]
    return json.dumps({"activations": [[index, min(value, DIGITS_ONLY)] for index, value in pairs]})


def _simulated_object(question: str) -> str:
    """The same as an object with an entry for each token."""
    return json.dumps(
        {"activations": {str(index): value for index, value in json.loads(_simulated(question))["activations"]}}
    )


def _simulated_many(question: str) -> str:
    """The same for several numbered excerpts, one to the line."""
    explanation, end = json.JSONDecoder().raw_decode(question)
    _, *lines = question[end:].strip().splitlines()
    excerpts = (line.partition(": ") for line in lines)
    return json.dumps({"excerpts": {place: _predicted(explanation, json.loads(found)) for place, _, found in excerpts}})


def _simulated_sparse(question: str) -> str:
    """The same, of active tokens alone."""
    found = json.loads(_simulated_many(question))["excerpts"]
    return json.dumps({"excerpts": {place: [pair for pair in pairs if pair[1]] for place, pairs in found.items()}})


def _simulated_closed(question: str) -> str:
    """The same, and each list says where its excerpt ends."""
    found = json.loads(_simulated_many(question))["excerpts"]
    closed = {place: [*(pair for pair in pairs if pair[1]), [len(pairs) - 1, END]] for place, pairs in found.items()}
    return json.dumps({"excerpts": closed})


def _judged(question: str) -> str:
    """1 for each text in which the explanation says that the neuron fires; of marked ones, at most of the marks."""
    explanation, end = json.JSONDecoder().raw_decode(question)
    _, *lines = question[end:].strip().splitlines()
    answers = []
    for place, line in enumerate(lines):
        shown = json.loads(line.partition(": ")[2])
        words = [
            (word, isinstance(piece, list))
            for piece in ([shown] if isinstance(shown, str) else shown)
            for word in re.findall(r"\s*(?:\w+|[^\w\s])", piece[0] if isinstance(piece, list) else piece)
        ]
        fires = [value > 0 for _, value in _predicted(explanation, [(0, word) for word, _ in words])]
        marked = [firing for firing, (_, mark) in zip(fires, words, strict=True) if mark]
        answers.append([place, int(any(fires) if isinstance(shown, str) else 2 * sum(marked) > len(marked))])
    return json.dumps({"answers": answers})


def _intruder(question: str) -> str:
    """The number of the text whose marked words are least those of the others."""
    marked = [
        {piece[0].strip() for piece in json.loads(line.partition(": ")[2]) if isinstance(piece, list)}
        for line in question.strip().splitlines()
    ]
    shared = [sum(len(words & other) for other in marked if other is not words) for words in marked]
    return json.dumps({"intruder": min(range(len(shared)), key=shared.__getitem__)})


def _predicted(explanation: str, numbered: Sequence[tuple[int, str]]) -> list[list[int]]:
    words = [token for _, token in numbered]
    if explanation == _EVERYTHING:
        firing = [True] * len(words)
    else:
        named, _, before = explanation.replace(_AFTER_IN_FRENCH, _AFTER).partition(_AFTER)
        quoted = re.compile('"([^"]+)"')
        firing = _firing(quoted.findall(named), next(iter(quoted.findall(before)), None), words)
    return [[index, 10 if fires else 0] for (index, _), fires in zip(numbered, firing, strict=True)]


def _firing(tokens: Sequence[str], after: str | None, words: Sequence[str]) -> list[bool]:
    bare = [word.strip() for word in words]
    return [
        word in tokens and (after is None or before == after)
        for word, before in zip(bare, ["", *bare[:-1]], strict=True)
    ]


def _in_french(text: str) -> str:
    """What it says of a neuron, in French; the words in quotes stay as they are."""
    said = json.loads(text)
    if "explanation" not in said:
        return text
    words = said["explanation"].replace(_AFTER, _AFTER_IN_FRENCH)
    for english, french in (("the words ", "les mots "), ("the word ", "le mot ")):
        words = words.replace(english, french)
    return json.dumps({**said, "explanation": words})


_AFTER, _AFTER_IN_FRENCH = " right after ", " juste après "
_EVERYTHING = "every token"
_NOTHING = "nothing at all"


def _planted_neurons() -> tuple[PlantedNeuron, ...]:
    layers: tuple[tuple[str | tuple[str, str], ...], ...] = (
        ("colours", "animals", "foods", "never", "always", "weather", "months", "music"),
        (*PAIRS, "never", "always", "tools", "numbers", "ship"),
    )
    return tuple(
        _planted(layer, index, named, others=GROUPS["animals" if named != "animals" else "foods"])
        for layer, names in enumerate(layers)
        for index, named in enumerate(names)
    )


def _planted_gated_neurons() -> tuple[PlantedNeuron, ...]:
    return (
        _planted(0, 0, "colours", others=GROUPS["foods"], kind="both"),
        _planted(0, 0, "animals", others=GROUPS["foods"], kind="both", polarity="-"),
        _planted(0, 1, "tools", others=GROUPS["foods"]),
        _planted(0, 2, "never", others=GROUPS["foods"]),
        _planted(0, 3, "always", others=GROUPS["foods"]),
    )


def _planted(
    layer: int,
    neuron: int,
    named: str | tuple[str, str],
    *,
    others: Sequence[str],
    kind: Kind = "tokens",
    polarity: str = "+",
) -> PlantedNeuron:
    tokens: tuple[str, ...] = ()
    after = None
    match named:
        case "never":
            kind, what = "never", _NOTHING
        case "always":
            kind, what = "always", _EVERYTHING
        case (first, second):
            kind, tokens, after = "after", (second,), first
            what = f'{_quoted(tokens)} right after "{first}"'
        case str():
            tokens = GROUPS[named]
            what = _quoted(tokens)
    return PlantedNeuron(
        layer=layer,
        neuron=neuron,
        what=what,
        wrong=_quoted(others),
        tokens=tokens,
        after=after,
        kind=kind,
        polarity=polarity,
    )


def _quoted(tokens: Sequence[str]) -> str:
    return f"the word{'s' if len(tokens) > 1 else ''} " + ", ".join(f'"{token}"' for token in tokens)


def _vocabulary() -> list[str]:
    """All words; the first stands for any other."""
    paired = [word for pair in PAIRS for word in pair]
    return list(dict.fromkeys(["<unk>", ".", *COMMON, *(word for group in GROUPS.values() for word in group), *paired]))


def _undo_layer_norm(norm: "torch.nn.LayerNorm", *, ones: int) -> None:
    """Weights that make the norm the identity on vectors of `ones` ones among zeros."""
    mean = ones / norm.normalized_shape[0]
    norm.weight.fill_(math.sqrt(mean - mean**2 + norm.eps))
    norm.bias.fill_(mean)


def _write(folder: Path, model: Any) -> None:
    """The model as safetensors, and its tokenizer: one token for each word with the space before it, as GPT-2 has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spelled = {word if word in ("<unk>", ".") else f"Ġ{word}": index for index, word in enumerate(_vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(spelled, unk_token="<unk>"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    model.save_pretrained(folder)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)  # noqa: S106
