"""The capture benchmark measures a tiny model from end to end, and says what its help and docstrings promise."""

import json

import pytest
import torch

from benchmarks import capture, environments, subjects
from benchmarks.figures import Figure, as_text
from benchmarks.passes import side_by_side
from pipeline.capture import plan
from pipeline.tables import SPLITS

KEYS = {"figure", "value", "unit", "goal", "higher_is_better", "detail"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    subjects.save("tiny", folder)
    return folder


@pytest.fixture(scope="module")
def figures():
    """What each part prints for the tiny shape, as JSON."""

    def measure(capsys, *arguments):
        capture.main(["--shape", "tiny", "--windows", "8", "--repetitions", "2", "--json", *arguments])
        return {figure["figure"]: figure for figure in json.loads(capsys.readouterr().out)}

    return measure


def test_every_figure_has_what_a_reader_needs(capsys, figures):
    found = figures(capsys, "--parts", "ratio,growth")
    assert set(found) == {"wall_over_bare_tiny_8", "cpu_over_bare_tiny_8", "growth_per_token", "growth_of_merge"}
    assert all(set(figure) == KEYS for figure in found.values())
    assert all(figure["value"] > 0 for figure in found.values())


def test_the_lake_is_as_large_as_its_files_and_is_read_back(capsys, figures):
    found = figures(capsys, "--parts", "lake")
    assert set(found) == {"bytes_per_neuron", "read_one_neuron_p50", "read_one_neuron_p95"}
    assert found["bytes_per_neuron"]["value"] > 100
    assert found["read_one_neuron_p50"]["value"] <= found["read_one_neuron_p95"]["value"]


def test_the_state_is_that_of_all_neurons_and_needs_no_model(monkeypatch, capsys, figures):
    monkeypatch.setattr(capture, "STATE_WINDOWS", 40)
    monkeypatch.setattr(subjects, "save", None)
    found = figures(capsys, "--parts", "state")
    one, both = (found[name]["value"] * 2**30 / (2 * 64) for name in ("state_tiny_40", "state_tiny_40_both"))
    assert 5_000 < one < both < 100_000


def test_the_shapes_have_the_neurons_of_their_models(model):
    assert subjects.neurons("gpt2-xl") == (48, 6400)
    assert subjects.neurons("pythia") == (6, 2048)
    sites = subjects.subject("tiny", model, device="cpu").layers()
    assert subjects.neurons("tiny") == (len(sites), sites[0].n_neurons)


def test_peak_memory_is_that_of_a_process_of_its_own(model):
    bare, full = (capture.peak_mib("tiny", model, 4, leg) for leg in ("bare", "full"))
    # Torch alone takes this much, and so small a model hardly more.
    assert 100 < bare < 10_000
    assert 100 < full < 10_000


def test_a_peer_without_an_environment_runs_in_ours(model, tmp_path):
    peers = environments.peers(tmp_path, ["dump"])
    (found,) = capture.beside(peers, "tiny", model, 4, repetitions=1)
    assert found.figure == "wall_over_bare_tiny_4 [dump, float16, not forced to the disk]"
    assert found.value > 0
    assert list(tmp_path.iterdir()) == []


def test_every_peer_has_a_module_and_pins_what_it_needs():
    for name in environments.NAMES:
        assert (environments.PEERS / f"{name}.py").is_file()
    for requirements in (environments.PEERS / "requirements").iterdir():
        assert requirements.stem in environments.NAMES
        lines = requirements.read_text().splitlines()
        assert [line for line in lines if not line.startswith("#") and "==" not in line] == []
        assert "torch==2.13.0" in lines


def test_both_sides_read_every_window_once(model):
    planned = plan(subjects.windows("tiny", 70))
    found = side_by_side(subjects.subject("tiny", model, device="cpu"), planned, [0, 1])
    assert found.tokens == 70 * subjects.LENGTH
    assert found.captured == [(0, found.tokens), (1, found.tokens)]
    assert found.bare.wall > 0


def test_random_text_is_the_same_every_time_and_has_every_split():
    frame = subjects.windows("tiny", 64)
    assert frame.equals(subjects.windows("tiny", 64))
    assert set(frame.get_column("split")) == set(SPLITS)
    assert frame.get_column("token_ids").list.len().unique().to_list() == [subjects.LENGTH]


@pytest.mark.parametrize(
    ("value", "higher", "word"),
    [(2.0, False, "missed"), (1.0, False, "reached"), (1.0, True, "missed"), (3.0, True, "reached")],
)
def test_a_goal_is_reached_from_the_right_side(value, higher, word):
    goal = 1.5
    assert word in as_text(Figure("f", value, "MiB", goal, higher_is_better=higher, detail="how"))


def test_an_unknown_part_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        capture.main(["--parts", "speed"])
    assert "choose from ratio, growth, lake, memory, state" in capsys.readouterr().err
