"""What the pipeline needs from outside, and no more: the shapes that doors in `resources/` fit.

Corpus         gives documents
SubjectModel   the model being explained: tokenises, and runs so that its neurons can be read
LanguageModel  answers requests, each at most once
Encoder        gives texts as vectors
Lake           keeps tables
Partials       keeps what an unfinished forward pass has found so far
Machines       works on the pieces of a forward pass
Progress       hears how far a step has come
Foreign        reads what another system wrote
Releases       keeps what was released
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

if TYPE_CHECKING:
    import torch

    from pipeline.imports import Batch


@dataclass(frozen=True)
class Document:
    """One text, and where it is from. `text` is valid Unicode without lone surrogates."""

    document_id: str
    text: str


@dataclass(frozen=True)
class Rejected:
    """A piece of the corpus that could not be read: where it is, and why in one sentence."""

    document_id: str
    reason: str


class Corpus(Protocol):
    """A collection of documents, in an order that depends on their content only."""

    def documents(self) -> Iterator[Document | Rejected]:
        """Each document once, in the same order every time; what cannot be read comes as `Rejected`."""
        ...

    def fingerprint(self) -> str:
        """Tagged hash that changes whenever `documents` may give something else. Cheap: it parses nothing."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What an auditor must know to find the same text again: names, sizes and hashes of sources."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A tokenised text, without the model's special tokens. Both lists have one entry per token."""

    ids: list[int]
    pieces: list[bytes]
    """The UTF-8 bytes of the text that each token covers, leading white space included; joined, they give the text."""


@dataclass(frozen=True)
class LayerSite:
    """Where the neurons of one layer are read: the input of the MLP's output projection."""

    layer: int
    site: str
    n_neurons: int
    signed: bool
    """True for gated MLPs, whose neurons mean something on both sides of zero."""


class SubjectModel(Protocol):
    """The model being explained."""

    name: str

    def layers(self) -> Sequence[LayerSite]:
        """The layers with their neurons, found without loading the weights."""
        ...

    def fingerprints(self) -> Sequence[str]:
        """For each layer, the tagged hash of all that can influence its neurons."""
        ...

    def parts(self) -> Sequence[Mapping[str, str]]:
        """For each layer, what its fingerprint is made from: each part by a name that people read, and its content.

        A content is a short hash, or the value itself where it is short.
        """
        ...

    def tokenizer_hash(self) -> str:
        """Tagged hash of what turns text into tokens."""
        ...

    def device(self) -> str:
        """Where `capture` computes, such as `cpu` or `cuda`."""
        ...

    def workers(self) -> "Sequence[SubjectModel]":
        """The subject once for each device that it may use, itself first; each can `capture` in a thread of its own."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """Each text as the model's tokens, special tokens left out."""
        ...

    def vocabulary_size(self) -> int:
        """How many token embeddings there are; their ids count from 0. Found without loading the weights."""
        ...

    def spell(self, token_ids: Sequence[int]) -> Sequence[bytes]:
        """The UTF-8 bytes that each token stands for by itself, b"" for one that the tokenizer does not know.

        A word's first token begins with the space that stands before the word, where the vocabulary tells it from one
        within a word. A text may hold the token without this space, or in other letters if the tokenizer normalises.
        """
        ...

    def max_tokens(self) -> int:
        """The longest window of text, in tokens, that the model can read with its special tokens around it."""
        ...

    def probe(self) -> Sequence[Sequence[int]]:
        """A few windows of token ids that depend on the vocabulary alone; they tell how strong a neuron gets."""
        ...

    def capture(
        self,
        batches: Iterable[Sequence[Sequence[int]]],
        layers: Sequence[int],
        receive: "Callable[[int, slice, torch.Tensor], None]",
    ) -> None:
        """Run batches of token-id windows once, and hand over what the neurons did.

        The windows of one batch are equally long. Each is handed over once for each of `layers`, together with as many
        of its neighbours as memory allows: `receive(layer, rows, activations)` gets activations of shape (sequence,
        token, neuron), units of the neuron, of the windows `rows` of the batch that was asked for last. They lie on the
        device, in a number format that float32 holds exactly. The model's special tokens are added for the pass and
        cut off before `receive`. The tensor is only valid during the call. The pass stops after the last of `layers`.
        The next batch is asked for when all of this one was handed over.

        A piece for which memory ran out, in the pass or in `receive`, is cut in halves and run again, and only layers
        that have not had it yet get it; `receive` must leave nothing behind when it raises.
        """
        ...

    def irreplaceable(self) -> str | None:
        """Why `replaced` cannot be asked, one word of `pipeline.tables.MISSING`; None if it can. Needs no weights."""
        ...

    def replaced(
        self, layer: int, window: Sequence[int], neurons: Sequence[int], values: "np.ndarray"
    ) -> "Iterator[torch.Tensor]":
        """What comes next on a window of token ids if a neuron of a layer does something else: logits (token, vocabulary).

        First as the model is, then once for each of `neurons`, with `values[i, t]` (float32, units of the neuron) in the
        place of neuron `neurons[i]` at token t. Special tokens stand around the window as in `capture`; at them
        nothing is replaced, and nothing is given. Each tensor is only valid until the next one is asked for.
        """
        ...

    def embeddings(self) -> "np.ndarray":
        """The token embeddings, float32 (vocabulary, width)."""
        ...

    def reading(self, layer: int) -> "np.ndarray | None":
        """What each neuron reads, float32 (width, neuron): `diag(ln.g) @ W_in` with the norm that the MLP reads from.

        LayerNorm's bias and centring are left out (Bills et al. 2023, weight-based connections). None where the neurons
        are not one linear map of their input followed by a nonlinearity (gated MLPs), or the norm is no plain one.
        """
        ...

    def writing(self, layer: int) -> "np.ndarray | None":
        """What each neuron writes, float32 (neuron, width): the rows of the output projection; None without one."""
        ...

    def unembedding(self) -> "np.ndarray | None":
        """From what neurons write to logits, float32 (width, vocabulary): `diag(ln_f.g) @ W_U`, bias and centring left
        out; None for a model without a linear language-model head (encoders)."""
        ...

    def weights_hash(self) -> str:
        """Tagged hash of all weights, in the number format in which they are read."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Source, revision, file hashes, number format and device: what decides the numbers."""
        ...


@dataclass(frozen=True)
class Request:
    """One question to a language model. Immutable: its content is its identity."""

    model: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) pairs; one of role `prompt` alone is plain text to go on from, for an endpoint's completions, and one of
    role `embed` alone a text whose vector is asked for: the reply's text is a JSON list of numbers."""
    temperature: float
    max_tokens: int
    seed: int
    json_reply: bool = True
    """Ask the endpoint for a JSON object, where it can promise one."""
    logprobs: int = 0
    """How many likely tokens to ask for in the place of each token of the reply; in the identity if it is not 0."""
    echo: tuple[int, ...] = ()
    """Places in the prompt, in characters, to give the likely tokens at, in place of the reply's; needs `logprobs`,
    and a prompt of ASCII alone. In the identity if there are any."""
    told_from: int = 0
    """Place in the prompt, in characters, from which on the probability of every token is asked for, in place of the
    reply's: `Reply.likely` then has these tokens, each with itself alone. Needs `logprobs`. In the identity if not 0."""
    shape: str = ""
    """JSON Schema that the endpoint is asked to hold the reply to, as JSON. In the identity if there is one."""


@dataclass(frozen=True)
class Likely:
    """One token, and the likeliest tokens in its place with the natural logarithms of their probabilities.

    Those below `LEAST_LOGPROB` are left out. A place of a prompt where no token begins has neither.
    """

    token: str
    tokens: tuple[tuple[str, float], ...]


LEAST_LOGPROB = -10.0
"""A probability of 1 in 22,000; twenty such tokens move an expected value between 0 and 10 by less than 0.01."""


@dataclass(frozen=True)
class Reply:
    """What came back for one request: the text word for word, or the reason why there is none."""

    request_id: str
    text: str | None
    missing_because: str | None
    model_served: str | None = None
    likely: tuple[Likely, ...] | None = None
    """For each token of the text, or each place of `Request.echo`; None if not asked for, or if none came."""


@dataclass(frozen=True)
class Usage:
    """What a set of answers cost."""

    requests_sent: int = 0
    requests_kept: int = 0
    """Answered from what was kept, without sending anything."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    """None when a price is not known."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How many requests ended with each reason."""

    def __add__(self, other: "Usage") -> "Usage":
        """Both together; their cost is unknown where that of either is, unless it asked for nothing."""
        asked = [usage for usage in (self, other) if usage.requests_sent or usage.requests_kept]
        costs = [usage.cost_usd for usage in asked]
        return Usage(
            requests_sent=self.requests_sent + other.requests_sent,
            requests_kept=self.requests_kept + other.requests_kept,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_usd=None if not costs or None in costs else sum(cost for cost in costs if cost is not None),
            failures={
                reason: self.failures.get(reason, 0) + other.failures.get(reason, 0)
                for reason in {**self.failures, **other.failures}
            },
        )


class LanguageModel(Protocol):
    """Answers requests. Two requests with the same content get one answer, which is paid for once."""

    def answer(self, requests: Sequence[Request], *, run_id: str) -> tuple[Sequence[Reply], Usage]:
        """One reply per request, in their order. A failed request is a reply with a reason, never an exception.

        Raises:
            LanguageModelError: the endpoint cannot be used at all (wrong key, no such model, not reachable).
        """
        ...


@dataclass(frozen=True)
class Vector:
    """A text as a vector of length 1, float32 (width,), or the reason why there is none."""

    values: np.ndarray | None
    missing_because: str | None = None
    request_id: str | None = None
    """The request that it took; None for an encoder in this process."""


class Encoder(Protocol):
    """Gives texts as vectors, those near each other that mean alike."""

    name: str

    def fingerprint(self) -> str:
        """Tagged hash of what decides the vectors."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What an auditor must know to find the same encoder again."""
        ...

    def encode(self, texts: Sequence[str], *, run_id: str) -> tuple[Sequence[Vector], Usage]:
        """One vector for each text, in their order, and what that cost.

        Raises:
            LanguageModelError: the encoder cannot be used at all.
        """
        ...


class Price(Protocol):
    """What a model charges."""

    def cost(self, *, prompt: int, cached: int = 0, completion: int = 0) -> float:
        """US dollars for so many tokens, `cached` of the `prompt` ones included in these."""
        ...


Answer = Callable[[Sequence[Request]], tuple[Sequence[Reply], Usage]]
"""`LanguageModel.answer` within one run."""


class QuotingLanguageModel(LanguageModel, Protocol):
    """One that says what it would send, and for how much."""

    def recall(self, requests: Sequence[Request]) -> Sequence[Reply | None]:
        """For each request its kept reply, None for one that `answer` would send. Sends nothing."""
        ...

    def price(self, model: str) -> Price | None:
        """What the model costs, None if that is not known."""
        ...


@dataclass(frozen=True)
class Commit:
    """One write to the lake."""

    table: str
    version: int
    commit_uuid: str
    rows: int
    ledger_head: str | None = None
    """The head of the lake's ledger after this write; None where there is no ledger."""


class Lake(Protocol):
    """The tables of `pipeline.tables`, partitioned by layer."""

    uri: str

    def scan(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.LazyFrame:
        """The rows of a table, of one layer, or of some neurons of it; without rows if never written."""
        ...

    def read(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.DataFrame:
        """The same rows, read at once and sorted as the table declares.

        Raises:
            LakeError: a file of the table is missing or damaged.
        """
        ...

    def find(self, table: str, keys: pl.DataFrame) -> pl.LazyFrame:
        """The rows of a table without layers that have these keys (a column for each of the table's)."""
        return self.scan(table).join(keys.lazy(), on=keys.columns, how="semi")

    def rows(self, table: str, *, layer: int | None = None) -> int:
        """How many rows a table, or one layer of it, has; reads no data."""
        ...

    def slices(self, table: str) -> Mapping[int | None, tuple[int, frozenset[str | None]]]:
        """For each layer of a table (None for one without layers), its rows now and the commits that wrote them.

        A commit is its `commit_uuid`, None if it is not one of ours. Reads the log, no data.
        """
        ...

    def run_ids(self, table: str, *, layer: int | None = None) -> set[str]:
        """The runs that wrote the rows of a table, or of one layer of it."""
        ...

    def version(self, table: str) -> int | None:
        """The Delta version of a table, or None when it was never written."""
        ...

    def ledger_head(self) -> str | None:
        """The hash that stands for all that was ever written; None where there is no ledger."""
        return None

    def replace(
        self,
        table: str,
        frame: pl.DataFrame,
        *,
        layer: int | None = None,
        neurons: Sequence[int] | None = None,
        record: Mapping[str, Any],
        commit_uuid: str | None = None,
        allow_empty: bool = False,
    ) -> Commit:
        """Replace exactly one slice: a layer, some neurons of a layer, or (only for a table without layers) all.

        `record` goes into the Delta commit as JSON. Retries when another writer came first.

        Raises:
            LakeError: the rows break a rule of the table, lie outside the slice, or are none without `allow_empty`.
        """
        ...

    def add(self, table: str, frame: pl.DataFrame, *, record: Mapping[str, Any]) -> Commit | None:
        """Add those rows whose key is not in the table yet (a table without layers); None if there were none."""
        ...


class Folder(Protocol):
    """Where files of one export go."""

    def write(self, name: str, data: bytes) -> None:
        """Write one file under a relative name, with `/` between its parts."""
        ...

    def stream(self, name: str, pieces: "Iterable[bytes]") -> None:
        """Write one file that may be larger than memory."""
        self.write(name, b"".join(pieces))


class Releases(Protocol):
    """Keeps what was released, each version once and for good."""

    def folder(self, version: str) -> AbstractContextManager[Folder]:
        """A new folder for a version, which is there when the `with` ends without an error, and not before.

        Raises:
            SettingsError: this version was released already.
        """
        ...

    def digests(self, version: str) -> Mapping[str, str]:
        """The SHA-256, in hex, of every file of a release, by its name."""
        ...

    def place(self, version: str) -> str:
        """Where a release is."""
        ...


class Partials(Protocol):
    """Keeps what an unfinished forward pass has found so far. It may lose it; it may not change it."""

    def keep(self, key: str, captures: "Iterable[tuple[int, Mapping[str, np.ndarray]]]") -> None:
        """Keep the arrays of each layer, in place of what was kept under this key before."""
        ...

    def found(self, key: str, layers: Sequence[int]) -> "Mapping[int, Mapping[str, np.ndarray]]":
        """The arrays of each of these layers that were kept last under this key; none if nothing was."""
        ...

    def drop(self, key: str) -> None:
        """Give up what was kept under this key."""
        ...


class Machines(Protocol):
    """Where the pieces of a forward pass are worked on."""

    def count(self) -> int:
        """How many pieces are worked on at a time; 0 if a pass runs here, window by window, and needs no pieces."""
        ...

    def reduce(
        self,
        work: "Callable[[Any, Any], tuple[int, Sequence[Any]]]",
        shared: object,
        pieces: "Sequence[Any]",
        join: "Callable[[Any, Any], Any]",
        *,
        n_results: int,
        finished: "Callable[[Sequence[int], Sequence[int], Callable[[], Iterator[Any]]], None]",
    ) -> "Iterator[Any]":
        """Each of the `n_results` results, joined over all pieces, in their order.

        `work(shared, piece)` is called once for each piece, on some machine, and gives a number and the results; where
        that machine is lost, it is called again on another. `join` makes one result of two, in any order. As pieces
        finish, `finished(pieces, numbers, so_far)` hears which, with the number of each; `so_far()` joins what there is.

        Raises:
            NeuronLedgerError: the machines cannot be reached or were lost too often; or what `work` raised.
        """
        ...

    def ask(
        self,
        work: "Callable[[Any, Any, Answer], Any]",
        shared: object,
        pieces: "Iterable[Any]",
        language: LanguageModel,
        *,
        run_id: str,
    ) -> "Iterator[Any]":
        """`work(shared, piece, answer)` of each piece, in their order; `answer` asks the language model.

        Wherever they are worked on, what is kept is not asked for again, and the budget and the pace are those of all
        together. Where a machine is lost, its piece is begun anew on another.

        Raises:
            NeuronLedgerError: as `reduce`, or the language model cannot be used.
        """
        ...


class Progress(Protocol):
    """Hears how far a step has come."""

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` things of this step are done; a `total` of 0 means that nobody knows how many there are."""
        ...


class Foreign(Protocol):
    """Files of another system, read a few hundred at a time."""

    def count(self, form: str, place: str) -> int:
        """How many files (or parts of files) `batches` will have something to say of, as far as that is known."""
        ...

    def batches(
        self, form: str, place: str, *, source: str, tokenizer: str | None = None, originals: bool = True
    ) -> "Iterator[Batch]":
        """The rows of all files of a form under a folder, or of one file, layer by layer.

        `tokenizer` is a folder with the tokenizer of those forms that have token ids; they stay ids without one. With
        `originals` the files themselves come too.

        A file that is not of its form comes as rejected, and the others go on.

        Raises:
            SettingsError: there is nothing of this form there.
        """
        ...
