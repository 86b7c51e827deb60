"""Benchmark of prompt tokens: a neuron explained and simulated in OpenAI's layout and in ours, and how well each scores.

    pip install tiktoken
    python -m benchmarks.tokens

The planted model of the tests, whose neurons' truth is known, goes through the whole pipeline with the scripted endpoint:
five excerpts of 64 tokens to explain a neuron, five strong and five random ones to simulate it. Our prompts are those that
were sent, each message with the 4 tokens around it (and 3 for the reply) that OpenAI's chat format takes.

OpenAI's layout (Bills et al. 2023, automated-interpretability) is written here for the same excerpts: a line of token, tab
and activation for each token; to explain, all excerpts twice where the neuron is silent on four fifths of them, the second
time with only what is not 0; to simulate, one request for each excerpt, `unknown` in place of each activation. It gets our
worked cases, which are shorter than OpenAI's (115 tokens of text against 146 and about 290), and two sentences of
instruction, so that the comparison favours it. Its score is that of `--simulation all-at-once`, which reads the same layout.
"""

import argparse
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import uvicorn

from benchmarks.figures import Figure, as_json, as_text
from explorer.access import Opened, open_lake
from explorer.fake_endpoint import FakeEndpoint
from pipeline import prompts
from pipeline.errors import SettingsError
from pipeline.testing import planted_checkpoint, planted_corpus
from pipeline.texts import display

ROOT = Path(__file__).parents[1]
GOAL = 0.5
AROUND_MESSAGE, AROUND_REPLY = 4, 3
WAYS = {
    "default": ("token-activation-pairs", "json"),
    "json_many": ("token-activation-pairs", "json-many"),
    "fewest": ("highlight-values", "json-sparse"),
    "openai": ("token-activation-pairs", "all-at-once"),
}
"""Method and way to simulate, by what the figure is called; the last is for its score alone."""
EXPLAINER = (
    "You are given tokens of text with the activations of one neuron, from 0 to 10. Say in a phrase what it finds."
)
SIMULATOR = "You are told what one neuron finds. Give its activation, from 0 to 10, in place of each `unknown`."

Pairs = Sequence[tuple[str, int]]
Count = Callable[[str], int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the planted model in each way, count, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoding", default="cl100k_base", help="of tiktoken")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    count = encoding(asked.encoding)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), asked.documents, count, asked.encoding)
    print(as_json(found) if asked.json else "\n".join(map(as_text, found)))


def encoding(name: str) -> Count:
    """How many tokens a text is.

    Raises:
        SettingsError: tiktoken is not installed.
    """
    try:
        encode = importlib.import_module("tiktoken").get_encoding(name).encode
    except ModuleNotFoundError:
        raise SettingsError("tiktoken is not installed, by which tokens are counted: pip install tiktoken") from None
    return lambda text: len(encode(text, disallowed_special=()))


def measured(folder: Path, documents: int, count: Count, name: str) -> list[Figure]:
    """Each way held against OpenAI's layout, of the neurons that an explainer was asked about."""
    found: list[Figure] = []
    tokens: dict[str, float] = {}
    replies: dict[str, float] = {}
    scores: dict[str, float] = {}
    with serving() as url:
        planted(folder / "base", documents)
        command(folder / "base")
        for way, (method, simulation) in WAYS.items():
            home = shutil.copytree(folder / "base", folder / way)
            asking = ("--explainer", "scripted", "--base-url", f"{url}/v1", "--methods", method)
            command(home, *asking, "--simulation", simulation)
            lake = open_lake(str(home / "lake"))
            calls = lake.table("language_calls").select("request", "reply").collect()
            said = lake.table("explanations").filter(pl.col("explainer") == "scripted").collect()
            asked = said.drop_nulls("request_id").select("layer", "neuron", "polarity").unique()
            messages = [json.loads(request)["messages"] for request in calls.get_column("request")]
            tokens[way] = sum(prompt(one, count) for one in messages) / len(asked)
            replies[way] = sum(count(reply or "") for reply in calls.get_column("reply")) / len(asked)
            scores[way] = mean_score(lake)
        explain, simulate = theirs(lake, asked, said, count)
    layout = explain + simulate
    of = f"OpenAI's layout takes {layout:,.0f}, {explain:,.0f} of them to explain; {len(asked)} neurons, {name}"
    for way, (method, simulation) in WAYS.items():
        goal = GOAL if way == "fewest" else None
        if way != "openai":
            detail = f"{tokens[way]:,.0f} a neuron by {method} and {simulation}, {replies[way]:,.0f} in replies; {of}"
            found.append(Figure(f"prompt_tokens_{way}", tokens[way] / layout, "of OpenAI's layout", goal,
                                higher_is_better=False, detail=detail))  # fmt: skip
    gained = scores["fewest"] - scores["openai"]
    detail = f"mean correlation on the top and random excerpts: {scores['fewest']:.4f} against {scores['openai']:.4f}"
    found.append(Figure("score_fewest", gained, "above all-at-once", -0.01, higher_is_better=True, detail=detail))
    return found


def mean_score(lake: Opened) -> float:
    """Of the explanations that a language model wrote and simulated."""
    rows = lake.table("scores").filter(
        (pl.col("simulator") == "scripted")
        & (pl.col("scorer") == "ev_correlation")
        & (pl.col("split") == "top_and_random")
    )
    (value,) = rows.select(pl.col("value").mean()).collect().row(0)
    return float(value)


def planted(home: Path, documents: int) -> None:
    """A model, texts, and a file with settings that name them."""
    home.mkdir()
    planted_checkpoint(home / "subject")
    texts = planted_corpus(documents, seed=1)
    (home / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    # Names that are the same in every copy, so that a copy is as fresh as what it was made from.
    (home / "neuronledger.toml").write_text('subject = "subject"\ncorpus = "corpus.jsonl"\nlake = "lake"\n')


def command(home: Path, *options: str) -> None:
    """`neuronledger run` in a folder."""
    subprocess.run(
        [sys.executable, "-c", "from explorer.cli import main; main()", "run", *options],
        cwd=home,
        env=os.environ | {"NEURONLEDGER_HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def theirs(lake: Opened, asked: pl.DataFrame, explained: pl.DataFrame, count: Count) -> tuple[float, float]:
    """Prompt tokens of a neuron in OpenAI's layout: to explain it, and to simulate its explanation ten times."""
    texts = display(lake.table("sequences").collect())
    exemplars = lake.table("exemplars").collect().join(asked, on=["layer", "neuron", "polarity"])
    said = {
        (layer, neuron, polarity): text
        for layer, neuron, polarity, text in explained.select("layer", "neuron", "polarity", "text").iter_rows()
    }
    explain = simulate = 0
    for key, rows in exemplars.group_by("layer", "neuron", "polarity"):
        shown = [
            list(zip(texts[sequence], scaled, strict=False))
            for split, sequence, scaled in rows.select("split", "sequence_id", "scaled_activations").iter_rows()
            if split == "explain"
        ]
        explain += prompt([["system", EXPLAINER], ["user", to_explain(shown)]], count)
        for sequence in rows.filter(pl.col("split") == "score").get_column("sequence_id") if said.get(key) else ():
            simulate += prompt([["system", SIMULATOR], ["user", to_simulate(said[key], texts[sequence])]], count)
    return explain / len(asked), simulate / len(asked)


def prompt(messages: Sequence[Sequence[str]], count: Count) -> int:
    """Tokens of a request; a plain prompt has none around it."""
    if messages[0][0] == "prompt":
        return count(messages[0][1])
    return sum(count(text) + AROUND_MESSAGE for _, text in messages) + AROUND_REPLY


def to_explain(excerpts: Sequence[Pairs]) -> str:
    """Three worked neurons, and this one."""
    worked = [f"{_all(case.excerpts)}\nExplanation: {case.explanation}" for case in prompts.cases()]
    return "\n\n".join([*worked, f"{_all(excerpts)}\nExplanation:"])


def to_simulate(explanation: str, tokens: Sequence[str]) -> str:
    """Three worked neurons, and this one on one excerpt."""
    worked = [
        f"Explanation: {case.explanation}\n" + "\n".join(_lines(one) for one in case.excerpts)
        for case in prompts.cases()
    ]
    left_out = "\n".join(f"{token}\tunknown" for token in tokens)
    return "\n\n".join([*worked, f"Explanation: {explanation}\n<start>\n{left_out}\n<end>"])


def _all(excerpts: Sequence[Pairs]) -> str:
    parts = [_lines(one) for one in excerpts]
    firing = [value for one in excerpts for _, value in one]
    if sum(value > 0 for value in firing) < 0.2 * len(firing):
        parts += ["Only what is not 0:", *(_lines([pair for pair in one if pair[1] > 0]) for one in excerpts)]
    return "\n".join(parts)


def _lines(pairs: Pairs) -> str:
    return "\n".join(["<start>", *(f"{token}\t{value}" for token, value in pairs), "<end>"])


@contextmanager
def serving() -> Iterator[str]:
    """The scripted endpoint in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(FakeEndpoint().app(), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
