"""The command line as it is typed: what it makes, says, leaves alone and refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import polars as pl
import pytest
from click.testing import CliRunner
from endpoint import Endpoint
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from assets import activations
from explorer import cli
from explorer.cli import main
from explorer.command import layer_range, typed
from pipeline.checks import Finding
from pipeline.errors import SettingsError, SubjectError
from pipeline.ports import Request
from pipeline.tables import MISSING, TABLES
from pipeline.testing import GROUPS, ScriptedLanguageModel
from resources.delta import DeltaLake
from resources.settings import Settings, load
from resources.subject import HuggingFaceSubject

CANARY = "sk-canary-0123456789abcdef"
HOPS = ("exemplars", "explanations", "simulations", "scores")
CAPTURED = ("activations", "neuron_statistics", "token_associations")
OF_LAYER = ("subject_layers", *CAPTURED, *HOPS)


def said(result):
    """The lines on standard error, without indentation."""
    return [line.strip() for line in result.stderr.splitlines() if line.strip()]


def but_the_head(text):
    """What was printed, less the head of the ledger, which a command that wrote ends with."""
    return re.sub(r"^the ledger +sha256:[0-9a-f]{64}\n", "", text, flags=re.MULTILINE)


def is_neuron(layer, neuron):
    return (pl.col("layer") == layer) & (pl.col("neuron") == neuron)


def change(file, tensor):
    """Make one tensor of a checkpoint another."""
    tensors = load_file(file)
    tensors[tensor][0] += 0.25
    save_file(tensors, file, metadata={"format": "pt"})


# Making


def test_one_command_makes_everything(first):
    folder, result = first
    assert result.exit_code == 0
    assert folder.not_fresh() == {}
    of_all = {"sequences", "vocabulary", "connections", "materializations"}
    assert {name for name in TABLES if len(folder.table(name))} == {*OF_LAYER, *of_all}
    assert said(result) == [
        "sequences",
        "subject_layers layers 0-1",
        "activations layers 0-1",
        "exemplars to scores layer 0",
        "exemplars to scores layer 1",
        "vocabulary",
        "connections layers 0-1",
        "layer_summary",
    ]
    assert re.search(r"^ +0 +8 +1 +7 ", result.stdout, re.MULTILINE)
    assert f"lake             {folder.home}/lake/subject\n" in result.stdout


def test_a_second_run_recomputes_nothing_and_writes_nothing(made):
    versions, events = made.versions(), len(made.table("materializations"))
    result = made.type("run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Everything is fresh: nothing was recomputed.\n")
    assert made.versions() == versions
    assert len(made.table("materializations")) == events


def test_a_run_of_one_layer_makes_no_other_and_the_next_run_makes_the_rest(empty, made, tmp_path):
    folder = empty.copy(tmp_path)
    assert folder.type("run", "--layers", "0").exit_code == 0
    assert set(folder.not_fresh().items()) == {((name, 1), "missing: ") for name in (*OF_LAYER, "connections")}
    before = folder.runs()
    result = folder.type("run")
    assert result.exit_code == 0
    assert said(result) == [
        "subject_layers layer 1",
        "activations layer 1",
        "exemplars to scores layer 1",
        "connections layer 1",
        "layer_summary",
    ]
    assert folder.not_fresh() == {}
    after = folder.runs()
    assert {at for at in after if after[at] != before[at]} == {(name, 1) for name in (*OF_LAYER, "connections")}
    assert folder.contents() == made.contents()


def test_one_neuron_made_again_leaves_every_other_row_as_it_was(made, copied):
    result = copied.type("run", "--neurons", "0:1")
    assert (result.exit_code, but_the_head(result.stdout)) == (0, "recomputed neuron 0:1\n")
    assert result.stdout.endswith(f"the ledger       {copied.lake.ledger_head()}\n")
    runs = set()
    for name in TABLES:
        before, after = made.table(name), copied.table(name)
        if name in HOPS:
            own, same = after.filter(is_neuron(0, 1)), before.filter(is_neuron(0, 1))
            assert len(own) > 0
            assert_frame_equal(own.drop("run_id"), same.drop("run_id"), check_exact=True)
            runs |= set(own.get_column("run_id"))
            before, after = before.filter(~is_neuron(0, 1)), after.filter(~is_neuron(0, 1))
        if name == "materializations":
            after = after.filter(~pl.col("run_id").is_in(runs))
        assert_frame_equal(after, before, check_exact=True)
    assert len(runs) == 1
    found = json.loads(copied.type("status", "--json").stdout)
    assert {row["status"] for row in found} == {"fresh"}
    assert {row["table"]: row["recomputed"] for row in found if row["recomputed"]} == {name: [1] for name in HOPS}
    assert "scores: recomputed alone 0:1" in copied.type("status").stdout
    neurons = json.loads(copied.type("status", "--layer", "0", "--json").stdout)
    assert [(row["neuron"], row["status"], row["recomputed"]) for row in neurons] == [
        (neuron, "fresh", neuron == 1) for neuron in range(8)
    ]
    assert copied.type("status", "--layer", "0").stdout == "layer 0: 8 fresh\nrecomputed alone: 0:1\n"
    shown = copied.type("status", "--layer", "0", "--seed", "5").stdout
    assert shown.startswith("layer 0: 8 stale\nstale: setting `seed` changed from 0 to 5: 0:0, 0:1,")
    for neuron, alone in (("0:1", set(HOPS)), ("0:2", set())):
        chain = json.loads(copied.type("show", neuron, "--json").stdout)["chain"]
        assert {link["table"] for link in chain if link["alone"]} == alone
        assert {link["table"] for link in chain if link["run_id"] in runs} == alone


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("0:8", "layer 0 has neurons 0 to 7; there is no 0:8"),
        ("2:0", "the subject has layers 0 to 1; there is no 2:0"),
        ("0:1,", "'' is no neuron; write layer:neuron, such as 5:131"),
        ("01", "'01' is no neuron"),
        ("0:-1", "'0:-1' is no neuron"),
        ("٠:١", "is no neuron"),
        ("0:" + "9" * 5000, "is no neuron"),
    ],
)
def test_a_name_that_is_no_neuron_is_wrong_use(made, names, message):
    result = made.type("run", "--neurons", names)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_a_neuron_of_a_layer_that_was_never_captured_cannot_be_made(empty, tmp_path):
    result = empty.copy(tmp_path).type("run", "--neurons", "0:1")
    assert result.exit_code == 1
    assert "table `sequences` has no rows yet" in result.stderr


def test_layers_and_neurons_are_not_given_together(made):
    result = made.type("run", "--layers", "0", "--neurons", "0:1")
    assert (result.exit_code, result.stderr) == (2, "Error: give either --layers or --neurons, not both\n")


# What is stale


FIRST = "sequences is stale"


def downstream(layers, cause=FIRST):
    """Every slice of these layers that rests on `sequences`, with a cause by which it is stale."""
    causes = dict.fromkeys(CAPTURED, cause)
    causes |= {"exemplars": FIRST, "explanations": FIRST, "simulations": "explanations is stale"}
    causes["scores"] = "simulations is stale"
    return {(name, layer): f"stale: {why}" for layer in layers for name, why in causes.items()}


def test_what_changed_outside_makes_stale_what_is_made_from_it_and_nothing_else(copied):
    home = copied.home
    seeded = "setting `seed` changed from 0 to 7"
    assert copied.not_fresh("--seed", "7") == {
        ("sequences", None): f"stale: {seeded}",
        **downstream((0, 1), seeded),
        **{("scores", layer): f"stale: {seeded}" for layer in (0, 1)},
    }
    assert copied.not_fresh("--windows", "59") == {
        ("sequences", None): "stale: setting `windows` changed from 60 to 59",
        **downstream((0, 1)),
    }
    corpus = home / "corpus.jsonl"
    kept = corpus.read_bytes()
    corpus.write_bytes(kept.replace(b"house", b"mouse", 1))
    assert copied.not_fresh() == {
        ("sequences", None): "stale: the corpus has other text in 1 file (corpus.jsonl)",
        **downstream((0, 1)),
    }
    corpus.write_bytes(kept)
    assert copied.not_fresh() == {}

    weights = home / "subject" / "model.safetensors"
    kept = weights.read_bytes()
    change(weights, "h.1.mlp.c_fc.weight")
    of_weights = dict.fromkeys(CAPTURED, "stale: subject_layers is stale") | {
        "subject_layers": "stale: block 1 MLP input weights changed",
        "exemplars": "stale: activations is stale",
        "explanations": "stale: exemplars is stale",
        "simulations": "stale: explanations is stale",
        "scores": "stale: simulations is stale",
    }
    # What a neuron is joined to depends on the weights of all layers.
    joined = {("connections", layer): "stale: the checkpoint changed" for layer in (0, 1)}
    assert copied.not_fresh() == {(name, 1): cause for name, cause in of_weights.items()} | joined
    said = copied.type("status").stdout
    assert "scores of layer 1 stale: simulations is stale (block 1 MLP input weights changed)" in said
    weights.write_bytes(kept)
    change(weights, "h.0.mlp.c_proj.weight")
    assert {layer for name, layer in copied.not_fresh() if name != "connections"} == {1}
    weights.write_bytes(kept)
    # No neuron is behind the last projection.
    change(weights, "h.1.mlp.c_proj.weight")
    assert copied.not_fresh() == joined
    weights.write_bytes(kept)

    tokenizer = home / "subject" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("Ġhouse", "Ġhouses"), encoding="utf-8")
    found = copied.not_fresh()
    assert found["sequences", None] == "stale: tokenizer file tokenizer.json changed"
    assert found["vocabulary", None] == "stale: the tokenizer changed"
    assert set(found) == {
        ("sequences", None),
        ("vocabulary", None),
        *((name, layer) for name in (*OF_LAYER, "connections") for layer in (0, 1)),
    }


def test_new_weights_of_the_last_layer_cost_that_layer_and_the_connections_of_all(copied):
    change(copied.home / "subject" / "model.safetensors", "h.1.mlp.c_fc.weight")
    before, contents = copied.runs(), copied.table("scores", layer=1).drop("run_id", "identity")
    result = copied.type("run")
    assert result.exit_code == 0
    assert said(result) == [
        "subject_layers layer 1",
        "activations layer 1",
        "exemplars to scores layer 1",
        "connections layers 0-1",
        "layer_summary",
    ]
    after = copied.runs()
    assert {at for at in after if after[at] != before[at]} == {
        *((name, 1) for name in OF_LAYER), ("connections", 0), ("connections", 1)
    }  # fmt: skip
    assert not copied.table("scores", layer=1).drop("run_id", "identity").equals(contents)
    assert copied.not_fresh() == {}


def test_a_change_that_gives_the_same_text_costs_no_model_and_no_scores(copied):
    versions = copied.versions()
    result = copied.type("run", "--windows", "61")
    assert result.exit_code == 0
    assert said(result) == ["sequences", "layer_summary"]
    changed = {name for name, version in copied.versions().items() if version != versions[name]}
    assert changed == {"sequences", "materializations"}
    assert copied.not_fresh("--windows", "61") == {}


# What goes wrong


def test_rows_that_break_a_rule_are_not_taken_for_fresh_by_the_next_run(copied, monkeypatch):
    def broken(table, rows, **parents):
        found = checked(table, rows, **parents)
        return [Finding(found[0].name, passed=False, said="planted", numbers={}), *found[1:]]

    checked = activations.check
    monkeypatch.setattr(activations, "check", broken)
    assert copied.type("run", "--layers", "1", "--seed", "5").exit_code != 0
    failed = copied.not_fresh("--layers", "1", "--seed", "5")
    assert all("planted" in failed[name, 1] for name in CAPTURED)

    monkeypatch.undo()
    assert copied.type("run", "--layers", "1", "--seed", "5").exit_code == 0
    assert copied.not_fresh("--layers", "1", "--seed", "5") == {}


def test_a_layer_that_fails_says_why_stops_no_other_and_is_made_by_the_next_run(empty, tmp_path, monkeypatch):
    folder = empty.copy(tmp_path)
    made = activations.associations

    def broken(capture, *others, **named):
        if capture.layer == 1:
            raise SubjectError("the disk \x1b[31mis gone")
        return made(capture, *others, **named)

    monkeypatch.setattr(activations, "associations", broken)
    result = folder.type("run")
    assert result.exit_code == 3
    (error,) = [line for line in said(result) if line.startswith("Error")]
    assert error.startswith("Error: activations layers 0-1: ")
    assert error.endswith("the disk ␛[31mis gone")
    found = folder.not_fresh()
    assert set(found) == {(name, 1) for name in OF_LAYER} - {("subject_layers", 1)}
    assert {found[name, 1] for name in CAPTURED} == {"failed: SubjectError: the disk \x1b[31mis gone"}
    shown = folder.type("status")
    assert shown.exit_code == 0
    assert "activations of layer 1 failed: SubjectError: the disk ␛[31mis gone" in shown.stdout

    before = folder.runs()
    monkeypatch.undo()
    result = folder.type("run")
    assert result.exit_code == 0
    assert said(result) == ["activations layer 1", "exemplars to scores layer 1", "layer_summary"]
    assert folder.not_fresh() == {}
    after = folder.runs()
    assert {layer for (_, layer) in after if after[_, layer] != before[_, layer]} == {1}


def test_a_run_without_text_makes_nothing_from_it(empty, tmp_path, monkeypatch):
    def broken(subject, texts):
        raise SubjectError("no words")

    folder = empty.copy(tmp_path)
    monkeypatch.setattr(HuggingFaceSubject, "tokenize", broken)
    result = folder.type("run")
    # The weights were hashed all the same.
    assert (result.exit_code, but_the_head(result.stdout)) == (3, "")
    assert folder.not_fresh()["sequences", None] == "failed: SubjectError: no words"
    result = folder.type("run")
    assert (result.exit_code, but_the_head(result.stdout)) == (1, "")
    assert [line for line in said(result) if not line.startswith("Error: sequences: ")] == ["sequences"]


def test_a_corpus_that_is_gone_is_said_in_one_sentence(copied):
    (copied.home / "corpus.jsonl").unlink()
    for command in ("run", "status"):
        result = copied.type(command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: there is no file or folder `corpus.jsonl`")


def test_a_damaged_table_is_said_in_one_sentence(copied):
    for name in ("subject_layers", "scores", "sequences"):
        for file in (copied.home / "lake" / "subject" / name).rglob("*.parquet"):
            file.write_bytes(b"PAR1 no longer")
    for words in (("run",), ("show", "0:1")):
        result = copied.type(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: a data file of the lake cannot be read: ")
        assert result.stderr.count("\n") == 1


def test_a_model_of_another_shape_is_not_mixed_into_a_lake(made, gated):
    lake = str(made.home / "lake" / "subject")
    versions = made.versions()
    for words in (("run",), ("run", "--neurons", "0:1")):
        result = gated.type(*words, "--lake", lake)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.endswith("a model of another shape than 'subject'; give another --lake\n")
    assert made.versions() == versions


def test_ctrl_c_stops_the_run_and_the_next_one_goes_on(made, copied, monkeypatch):
    replace = DeltaLake.replace

    def interrupted(lake, table, frame, **slice_and_record):
        commit = replace(lake, table, frame, **slice_and_record)
        if table == "exemplars":
            signal.raise_signal(signal.SIGINT)
        return commit

    change(copied.home / "subject" / "model.safetensors", "h.0.mlp.c_fc.weight")
    monkeypatch.setattr(DeltaLake, "replace", interrupted)
    result = copied.type("run")
    assert (result.exit_code, but_the_head(result.stdout)) == (130, "")
    assert said(result)[-2:] == [
        "exemplars to scores layer 0",
        "Stopped. What was finished is kept; the same command goes on from there.",
    ]
    monkeypatch.undo()
    result = copied.type("run")
    assert result.exit_code == 0
    assert said(result) == [
        "exemplars to scores layer 0",
        # Layer 1 does what it did before, so nothing is made from it.
        "connections layers 0-1",
        "layer_summary",
    ]


KILLED = """
import os, signal, sys
from explorer.cli import main
from resources.delta import DeltaLake

table, layer, *words = sys.argv[1:]
replace = DeltaLake.replace

def last(lake, name, frame, **slice_and_record):
    commit = replace(lake, name, frame, **slice_and_record)
    if (name, str(slice_and_record.get("layer"))) == (table, layer):
        os.kill(os.getpid(), signal.SIGKILL)
    return commit

DeltaLake.replace = last
main(words)
"""
"""The command, killed right after the rows of one slice were written and before anyone was told."""


def test_a_run_that_is_killed_goes_on_where_it_was(empty, made, tmp_path):
    folder = empty.copy(tmp_path)

    def killed(table, layer):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
        done = subprocess.run(
            [sys.executable, "-c", KILLED, table, str(layer), "run"],
            cwd=folder.home, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        return [line.strip() for line in done.stderr.splitlines()][-1]

    def finished():
        return {at for at, (status, _) in folder.states().items() if status == "fresh"}

    assert killed("neuron_statistics", 0) == "activations layers 0-1"
    first = finished()
    assert first == {("sequences", None), ("subject_layers", 0), ("subject_layers", 1), ("activations", 0)}
    assert killed("explanations", 1) == "exemplars to scores layer 1"
    second = finished()
    assert second == {
        *first,
        *((name, layer) for name in CAPTURED for layer in (0, 1)),
        *((name, 0) for name in HOPS),
        ("exemplars", 1),
    }
    before = folder.runs()
    result = folder.type("run")
    assert result.exit_code == 0
    assert said(result) == [
        "explanations to scores layer 1",
        "vocabulary",
        "connections layers 0-1",
        "layer_summary",
    ]
    after = folder.runs()
    assert {at for at in after if after[at] and after[at] == before[at]} == second
    assert folder.not_fresh() == {}
    assert folder.contents() == made.contents()


# A language model


def scripted(planted):
    """An endpoint's answers: the planted truth, with words that speak to a terminal in every explanation."""
    language = ScriptedLanguageModel(planted)

    def answer(asked):
        messages = tuple((message["role"], message["content"]) for message in asked["messages"])
        replies, _ = language.answer([Request(asked["model"], messages, 0.0, 1, 0)], run_id="r")
        found = json.loads(replies[0].text)
        if "explanation" in found:
            found["explanation"] += ", \x1b[31m[bold]truly[/bold]"
        return json.dumps(found)

    return answer


def test_a_neuron_explained_by_an_endpoint_is_paid_for_once_and_the_key_is_nowhere(
    made, planted, tmp_path, monkeypatch
):
    folder = made.copy(tmp_path, on_disk=True)
    before = {name: made.table(name) for name in HOPS}
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with Endpoint(scripted(planted)) as endpoint:
        words = ("run", "--neurons", "0:1", "--explainer", "scripted", "--base-url", endpoint.url)
        result = folder.type(*words)
        assert result.exit_code == 0
        assert endpoint.keys == {CANARY}
        # One question to explain, one for each text among the ten excerpts to simulate; a random one may be a top one too.
        scored = before["exemplars"].filter(pl.col("split") == "score", layer=0, neuron=1)
        assert len(scored) == 10
        questions = 1 + scored.get_column("sequence_id").n_unique()
        assert endpoint.asked.total() == questions
        after = {name: folder.table(name) for name in HOPS}
        result = folder.type(*words)
        assert result.exit_code == 0
        assert endpoint.asked.total() == questions
    for name in HOPS:
        assert_frame_equal(folder.table(name).drop("run_id"), after[name].drop("run_id"), check_exact=True)
        new = after[name].drop("run_id").join(before[name], on="identity", how="anti")
        assert set(new.select("layer", "neuron").iter_rows()) == (set() if name == "exemplars" else {(0, 1)})
        old = after[name].drop("run_id").join(new, on="identity", how="anti")
        assert_frame_equal(old, before[name].drop("run_id"), check_exact=True, check_row_order=False)
    assert len(after["simulations"]) == len(before["simulations"]) + 10
    assert len(folder.table("language_calls")) == questions
    (score,) = (
        after["scores"]
        .filter(method="token-activation-pairs", scorer="ev_correlation", split="top_and_random")
        .get_column("value")
    )
    assert score > 0.9

    shown = folder.type("show", "0:1").stdout
    assert "token-activation-pairs by scripted" in shown
    assert ", ␛[31m[bold]truly[/bold]" in shown
    assert_harmless(shown)
    files = [path for path in folder.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert any(path.name == "language_calls.sqlite" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in result.output + shown


def test_an_endpoint_that_cannot_be_used_is_said_in_one_sentence(copied, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with Endpoint(script=["401"]) as endpoint:
        result = copied.type("run", "--neurons", "0:1", "--explainer", "m", "--base-url", endpoint.url)
    assert (result.exit_code, but_the_head(result.stdout)) == (1, "")
    assert f"Error: neuron 0:1: {endpoint.url} refused the key" in result.stderr
    assert CANARY not in result.output
    assert copied.not_fresh() == {}


# Looking


def assert_harmless(printed):
    """Nothing but printable characters and line ends, and nothing that turns text around."""
    odd = {char for char in printed if not char.isprintable() and char != "\n"}
    assert odd == set()
    assert "\u202e" not in printed


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_no_text_of_the_corpus_speaks_to_the_terminal(made, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = made.type("show", "0:0")
    assert result.exit_code == 0
    # With colours, only the sequences that set one are left.
    assert_harmless(re.sub(r"\x1b\[[0-9;]*m", "", result.stdout) if environment else result.stdout)
    for shown in ("[red]a[/red]", "[link=http://b]c[/link]", "␛[2J␛]0;d·", "·31m", "·e", "␀", "↵ f↵"):
        assert shown in re.sub(r"\x1b\[[0-9;]*m|«|»", "", result.stdout).replace("\n    ", "")
    assert "\x1b]8;" not in result.stdout


def test_a_neuron_is_shown_with_its_words_scores_texts_and_origin(made):
    shown = made.type("show", "0:1").stdout
    said = made.table("explanations", layer=0, neurons=[1]).filter(method="token-lookup").item(0, "text")
    (score,) = made.table("scores", layer=0, neurons=[1]).filter(
        method="token-lookup", scorer="ev_correlation", split="top_and_random"
    ).get_column("value")  # fmt: skip
    assert shown.startswith("neuron 0:1  input of h.0.mlp.c_proj\n")
    assert said in shown
    assert re.search(rf"ev_correlation +top_and_random +{score:.3f} \[", shown)
    assert "excerpts shown to explainers\ntop 0  " in shown
    assert "excerpts scored, never shown\ntop 0  " in shown
    assert re.search(r"«(dog|cat|horse|sheep|mouse)»", shown)
    origin = shown.partition("where it came from\n")[2].splitlines()
    assert [line.split()[0] for line in origin if line[:1].strip()] == ["table", *(name for name in TABLES if name in (
        "sequences", *OF_LAYER, "vocabulary", "connections"))]  # fmt: skip


def test_a_token_that_the_corpus_lacks_is_shown_by_its_text_which_does_not_speak_to_the_terminal(copied):
    token = copied.table("connections", layer=0, neurons=[0]).item(0, "input_positive_token_ids")[0]
    sequences, vocabulary = copied.table("sequences"), copied.table("vocabulary")
    copied.lake.replace("sequences", sequences.filter(~pl.col("token_ids").list.contains(token)), record={})
    hostile = pl.lit(b" \x1b[2J[red]\xe2\x80\xaepurple\n")
    is_it = pl.col("token_id") == token
    copied.lake.replace(
        "vocabulary",
        vocabulary.with_columns(bytes=pl.when(is_it).then(hostile).otherwise("bytes")),
        record={},
    )
    shown = copied.type("show", "0:0").stdout
    assert re.search(r"'␛\[2J\[red\].purple↵' [0-9.]+, 'yellow' [0-9.]+, 'green' ", shown)
    assert_harmless(shown)


def test_the_json_of_a_neuron_holds_the_numbers_of_the_tables(made):
    printed = made.type("show", "0:1", "--json").stdout
    assert printed.isascii()
    assert_harmless(printed)
    found = json.loads(printed)
    assert (found["layer"], found["neuron"], found["site"]) == (0, 1, "h.0.mlp.c_proj")
    at = {"layer": 0, "neurons": [1]}
    statistics = made.table("neuron_statistics", **at).row(0, named=True)
    assert found["statistics"].items() <= statistics.items()
    (side,) = found["sides"]
    columns = ["scorer", "split", "value", "missing_because", "ci_low", "ci_high", "n_sequences", "n_tokens"]
    assert {
        (said["explanation_id"], *(score[name] for name in columns))
        for said in side["explanations"]
        for score in said["scores"]
    } == set(made.table("scores", **at).select("explanation_id", *columns).iter_rows())
    exemplars = made.table("exemplars", **at)
    assert {(shown["exemplar_id"], *shown["activations"]) for shown in side["excerpts"]} == {
        (exemplar_id, *activations)
        for exemplar_id, activations in exemplars.select("exemplar_id", "activations").iter_rows()
    }
    assert "[link=http://b]" in "".join(token for shown in side["excerpts"] for token in shown["tokens"])
    made_by = made.table("materializations").filter(table="scores", layer=0, status="done").row(0, named=True)
    (link,) = [link for link in found["chain"] if link["table"] == "scores"]
    assert (link["run_id"], link["content_hash"], link["version"], link["alone"]) == (
        made_by["run_id"], made_by["content_hash"], made_by["version"], False,
    )  # fmt: skip


def test_both_sides_of_a_gated_neuron_are_shown_each_with_its_own_words(gated):
    shown = gated.type("show", "0:0").stdout
    assert "explanations, polarity +" in shown
    assert "explanations, polarity -" in shown
    positive, negative = json.loads(gated.type("show", "0:0", "--json").stdout)["sides"]
    assert (positive["polarity"], negative["polarity"]) == ("+", "-")
    assert positive["tokens"][0]["mean"] > 3
    assert positive["tokens"][0]["text"].strip() in GROUPS["colours"]
    assert negative["tokens"][0]["mean"] < -3
    assert negative["tokens"][0]["text"].strip() in GROUPS["animals"]
    peaks = re.findall(r"^top 0  (-?[0-9.]+)", shown.partition("polarity -")[2], re.MULTILINE)
    assert peaks
    assert all(float(peak) < -3 for peak in peaks)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("0:8", 1, "layer 0 has neurons 0 to 7; there is no 0:8"),
        ("2:0", 1, "layer 2 is not in the lake"),
        ("0", 2, "'0' is no neuron; write layer:neuron, such as 5:131"),
        ("0:" + "9" * 10, 2, "is no neuron"),
        ("\x1b[2J", 2, "is no neuron"),
    ],
)
def test_a_neuron_that_is_not_there_is_said_to_be_so(made, name, code, message):
    result = made.type("show", name)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert_harmless(result.stderr)


def test_an_empty_lake_says_what_to_do(empty):
    result = empty.type("show", "0:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("has no neurons yet; run `neuronledger run` first\n")
    assert set(empty.states().values()) == {("missing", "")}
    assert not (empty.home / "lake").exists()


def test_status_of_some_layers_looks_at_these_alone(made):
    assert {layer for _, layer in made.states("--layers", "1")} == {None, 1}
    result = made.type("status", "--layers", "2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the subject has layers 0 to 1; there is no 2" in result.stderr


def test_the_commands_that_a_run_ends_with_have_the_settings_that_it_had(made, monkeypatch):
    # However long the lines get, they can be copied whole.
    monkeypatch.setattr(sys, "argv", [f"/{'folder/' * 30}neuronledger"])
    shown = made.type("run", "--windows", "60", "--lake", "lake/subject", "--base-url", "http://a b/").stdout
    (command,) = re.findall(r"^one neuron anew  .*?( --.*)$", shown, re.MULTILINE)
    assert re.fullmatch(r" --neurons [01]:[0-7] --windows 60 --lake lake/subject --base-url 'http://a b/'", command)


# Settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "colour = 3",
            "`colour` is no setting; known are automation_budget_usd, base_url, batch, column, concurrency, corpus, ",
        ),
        ("windows = 0", "`windows` in {home}/neuronledger.toml (=0): input should be greater than or equal to 1"),
        ('dtype = "int8"', "`dtype` in {home}/neuronledger.toml (='int8'): input should be "),
        ("windows = ", "{home}/neuronledger.toml is not valid TOML: "),
        ("[windows", "{home}/neuronledger.toml is not valid TOML: "),
    ],
)
def test_a_wrong_line_of_the_file_is_wrong_use(tmp_path, monkeypatch, line, message):
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    (tmp_path / "neuronledger.toml").write_text(line + "\n")
    for command in ("run", "status", "ui", "demo"):
        result = CliRunner().invoke(main, [command])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: " + message.format(home=tmp_path))


def test_a_wrong_flag_is_wrong_use():
    for words in (["--windows", "many"], ["--windows", "0"], ["--dtype", "int8"], ["--colour", "3"]):
        result = CliRunner().invoke(main, ["status", *words])
        assert (result.exit_code, result.stdout) == (2, "")
        assert words[0] in result.stderr


def test_every_setting_is_a_flag_of_every_command_that_reads_any():
    for name in ("demo", "run", "status", "show", "ui"):
        flags = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {f"--{field.replace('_', '-')}" for field in Settings.model_fields} <= flags


def test_the_demo_is_the_demo_whatever_the_file_says_and_names_it_where_it_must(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(cli, "_run", lambda settings, layers: None)
    monkeypatch.setattr(cli, "_finished", lambda settings, flags: asked.append((settings, typed(flags))))
    assert CliRunner().invoke(main, ["demo"]).exit_code == 0
    (tmp_path / "neuronledger.toml").write_text('subject = "gpt2"\nwindows = 9\n')
    assert CliRunner().invoke(main, ["demo", "--seed", "1"]).exit_code == 0
    assert asked == [
        (load(subject="demo", windows=3072), ""),
        (load(subject="demo", seed=1), " --seed 1 --subject demo"),
    ]


def test_init_writes_a_file_that_says_what_is_so_anyway(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NEURONLEDGER_")]:
        monkeypatch.delenv(name)
    result = CliRunner().invoke(main, ["init"])
    path = tmp_path / "neuronledger.toml"
    assert (result.exit_code, result.stdout) == (0, f"wrote {path}\n")
    defaults = Settings()
    assert load() == defaults
    lines = re.sub(r"^# (?=\w+ = )", "", path.read_text("utf-8"), flags=re.MULTILINE)
    path.write_text(lines, encoding="utf-8")
    assert all(f"\n{name} = " in lines for name in Settings.model_fields)
    assert load() == defaults


def test_init_replaces_nothing_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "neuronledger.toml"
    path.write_text("windows = 7\n")
    result = CliRunner().invoke(main, ["init"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {path} is there already; give --force to replace it\n"
    assert path.read_text() == "windows = 7\n"
    assert CliRunner().invoke(main, ["init", "--force"]).exit_code == 0
    assert "windows = 3072" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "layers"),
    [(None, range(12)), ("0-3,7", [0, 1, 2, 3, 7]), ("7,0-1,1", [0, 1, 7]), (" 2 , 4 - 5 ", [2, 4, 5]), ("11", [11])],
)
def test_layers_are_named_by_numbers_and_ranges(text, layers):
    assert layer_range(text, 12) == list(layers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be layers and ranges such as 0-3,7"),
        ("1-", "must be layers and ranges"),
        ("-1", "must be layers and ranges"),
        ("1,,2", "must be layers and ranges"),
        ("1-2-3", "must be layers and ranges"),
        ("٣", "must be layers and ranges"),
        ("0x1", "must be layers and ranges"),
        ("9" * 5000, "must be layers and ranges"),
        ("3-1", "3-1 runs backwards; write 1-3"),
        ("0-999999", "the subject has layers 0 to 11; there is no 999999"),
        ("12", "the subject has layers 0 to 11; there is no 12"),
    ],
)
def test_what_names_no_layers_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        layer_range(text, 12)


def test_status_counts_the_rows_without_a_value_by_reason(told):
    found = {(row["table"], row["layer"]): row["missing"] for row in json.loads(told.type("status", "--json").stdout)}
    for (table, layer), missing in found.items():
        rows = told.table(table, layer=layer) if layer is not None else told.table(table)
        reasons = rows["missing_because"].drop_nulls().to_list() if "missing_because" in rows.columns else []
        assert missing == Counter(reasons)
    assert found["explanations", 1]["refused"] == 1
    shown = told.type("status").stdout
    assert re.search(r"explanations +refused +1 of \d+", shown)
    assert f"refused: {MISSING['refused']}" in shown
    assert '"missing": {}' in told.type("status", "--layers", "0", "--json").stdout
