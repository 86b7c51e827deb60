"""How things look in a terminal, and what can never get there."""

import io
import os
import pty
import sys
import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from assets.freshness import State, summary
from explorer import command, terminal
from explorer.neuron import Excerpt
from explorer.terminal import TerminalProgress, excerpt, harmless


def shown(tokens, activations, *, split="score"):
    return Excerpt(
        split=split,
        stratum="top",
        rank=0,
        document_id="d",
        sequence_id="s",
        exemplar_id="e",
        tokens=tokens,
        activations=[float(activation) for activation in activations],
        scaled_activations=activations,
    )


def printed(*things, colour=False, width=200):
    console = Console(file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None, width=width, highlight=False)  # fmt: skip
    for thing in things:
        console.print(thing)
    return console.file.getvalue()


@given(st.text())
def test_text_is_shown_character_for_character_and_none_of_them_acts(text):
    found = harmless(text)
    assert len(found) == len(text)
    assert {unicodedata.category(char) for char in found}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert harmless(found) == found


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_plain_text_of_any_script_is_left_alone(text):
    assert harmless(text) == text


def test_what_acts_is_shown_as_a_sign():
    assert harmless("a\n\tb\r\x1b[2J\x00\x07\x9b\u202e\u2028\ud800\U000e0041") == "a↵⇥b↵␛[2J␀······"


@given(st.lists(st.tuples(st.text(max_size=6), st.integers(0, 10)), min_size=1, max_size=20), st.booleans())
def test_no_token_of_an_excerpt_acts_and_no_markup_is_read(pairs, colour):
    tokens, scaled = [list(part) for part in zip(*pairs, strict=True)]
    text = excerpt(shown(tokens, scaled), colour=colour)
    assert {unicodedata.category(char) for char in text.plain}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert text.plain.replace("«", "").replace("»", "") == harmless("".join(tokens)).replace("«", "").replace("»", "")


def test_markup_in_a_text_is_text():
    hostile = "[red]a[/red] [link=http://b]c[/link] [/]"
    assert printed(excerpt(shown([hostile], [0]))) == hostile + "\n"
    assert "\x1b]8" not in printed(excerpt(shown([hostile], [9])), colour=True)


@pytest.mark.parametrize(
    ("token", "marked"),
    [("dog", "«dog»"), (" dog", " «dog»"), ("  dog ", "  «dog »"), ("\n", "«↵»"), (" ", "« »"), ("", "«»")],
)
def test_a_strong_token_is_marked_where_there_is_no_colour_with_the_space_before_it_outside(token, marked):
    assert excerpt(shown(["a", token], [0, 5]), colour=False).plain == f"a{marked}"
    assert excerpt(shown(["a", token], [0, 4]), colour=False).plain == f"a{harmless(token)}"


def test_a_short_excerpt_is_cut_around_its_strongest_token_and_says_so():
    tokens = [f" {place}" for place in range(9)]
    assert excerpt(shown(tokens, [0, 0, 0, 0, 9, 0, 0, 0, 0]), around=1, colour=False).plain == "…  3 «4» 5 …"
    assert excerpt(shown(tokens, [9, 0, 0, 0, 0, 0, 0, 0, 0]), around=1, colour=False).plain == " «0» 1 …"
    assert excerpt(shown(tokens, [0, 0, 0, 0, 0, 0, 0, 0, 9]), around=1, colour=False).plain == "…  7 «8»"


def luminance(red, green, blue):
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scaled", range(1, 11))
def test_a_coloured_token_can_be_read(scaled):
    (span,) = excerpt(shown(["a"], [scaled])).spans
    ground = Console(color_system="truecolor").get_style(span.style).bgcolor.triplet
    # WCAG 2.2, contrast of black on the ground, level AAA.
    assert (luminance(*ground) + 0.05) / 0.05 > 7


def test_layers_are_lines_of_numbers_and_what_is_not_there_is_a_dash():
    statistics = pl.DataFrame(
        {"layer": [0, 0], "neuron": [0, 1], "dead": [False, True]},
        schema_overrides={"layer": pl.Int32, "neuron": pl.Int32},
    )
    explanations = pl.DataFrame(schema={"layer": pl.Int32, "neuron": pl.Int32, "text": pl.String})
    scores = pl.DataFrame(
        schema={"layer": pl.Int32, "neuron": pl.Int32, "method": pl.String, "scorer": pl.String, "split": pl.String, "value": pl.Float64}
    )  # fmt: skip
    lines = printed(terminal.layers(statistics, explanations, scores)).splitlines()
    assert lines[0].split()[:3] == ["layer", "captured", "dead"]
    assert lines[1].split()[:3] == ["0", "2", "1"]


def test_connections_are_a_line_for_each_kind_and_no_token_acts():
    tokens = [
        {"token_id": 7, "text": " \x1b[2J[red]a", "strength": 1.5},
        {"token_id": 9, "text": None, "strength": 0.25},
    ]
    neurons = [{"layer": 3, "neuron": place, "strength": -1.0} for place in range(12)]
    joined = {kind: [] for kind in terminal.JOINED} | {
        "input_positive": tokens, "output_positive": None, "upstream_negative": neurons
    }  # fmt: skip
    lines = [line.split(maxsplit=3) for line in printed(terminal._connections(joined)).splitlines()]
    assert [" ".join(words[:3]) for words in lines] == list(terminal.JOINED.values())
    said = {kind: line[3].strip() for kind, line in zip(terminal.JOINED, lines, strict=True)}
    assert said["input_positive"] == "'␛[2J[red]a' 1.5, token 9 0.25"
    assert said["output_positive"] == "not defined for this model"
    assert said["upstream_negative"].startswith("3:0 -1, 3:1 -1, ")
    assert said["upstream_negative"].endswith(" 3:9 -1")
    assert said["downstream_positive"] == "none"


def test_states_are_a_grid_and_causes_that_are_alike_are_one_line():
    rows = summary(
        [
            State("sequences", None, "fresh"),
            State("scores", 0, "stale", "simulations is stale", (3,)),
            State("scores", 1, "stale", "simulations is stale"),
            State("scores", 2, "failed", "LakeError: \x1b[2J[red]no"),
            State("scores", 3, "missing"),
        ]
    )
    grid = [line.split() for line in printed(terminal.states(rows)).splitlines()]
    assert grid[1] == ["sequences", "fresh"]
    assert grid[2] == ["scores", "stale", "stale", "failed", "missing"]
    assert [line.plain for line in terminal.causes(rows)] == [
        "scores of layer 0, 1 stale: simulations is stale",
        "scores of layer 2 failed: LakeError: ␛[2J[red]no",
        "scores: recomputed alone 0:3",
    ]


def test_progress_is_a_line_for_each_step_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=80)
    with TerminalProgress(console) as progress:
        progress.say("activations layers 0-1")
        progress("capture", 1, 2, "9 tokens/s")
        progress("capture", 2, 2)
    assert console.file.getvalue() == "  activations layers 0-1\n"


def test_progress_is_a_bar_where_there_is_a_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with TerminalProgress(console) as progress:
        progress.say("activations")
        progress("capture", 1, 2, "9 tokens/s")
        progress("sequences", 500, 0, "documents read")
        progress._bars.refresh()
        seen = console.file.getvalue()
        progress.say("scores")
    assert "capture" in seen
    assert "1/2" in seen
    assert "9 tokens/s" in seen
    assert "500/?" in seen
    assert "  scores\n" in console.file.getvalue().removeprefix(seen)


def test_progress_is_seen_while_dagster_sends_standard_error_to_the_log_of_a_step(monkeypatch, tmp_path):
    watched, handle = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(handle, "w", encoding="utf-8") as stderr, (tmp_path / "log").open("w", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stderr", stderr)
        console = command.diagnostics()
        os.dup2(log.fileno(), handle)

        console.print("half way")

        assert b"half way" in os.read(watched, 1000)
        assert (tmp_path / "log").read_text(encoding="utf-8") == ""
        console.file.close()
    os.close(watched)
