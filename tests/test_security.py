"""What SECURITY.md promises of the code, read from the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("pipeline", "resources", "assets", "explorer") for path in (ROOT / room).rglob("*.py")
)
ALWAYS = {"trust_remote_code": False, "use_safetensors": True, "weights_only": True, "shell": False}
NEVER = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "joblib.load",
    "numpy.load",
    "np.load",
    "os.system",
}


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text("utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_code_that_comes_with_data(path: Path) -> None:
    for call in calls(path):
        assert ast.unparse(call.func) not in NEVER, f"{path}:{call.lineno}"
        for word in call.keywords:
            if word.arg in ALWAYS:
                assert isinstance(word.value, ast.Constant), f"{path}:{call.lineno}: {word.arg} must be written out"
                assert word.value.value is ALWAYS[word.arg], f"{path}:{call.lineno}: {word.arg}"


def test_a_model_is_loaded_with_both_words_written_out() -> None:
    words = {word.arg for call in calls(ROOT / "resources" / "subject.py") for word in call.keywords}
    assert {"trust_remote_code", "use_safetensors"} <= words


def test_predicates_are_built_in_one_place() -> None:
    for path in SOURCES:
        for call in calls(path):
            for word in call.keywords:
                if word.arg == "predicate":
                    assert path.name == "delta.py", f"{path}:{call.lineno}"
                    assert ast.unparse(word.value) == "part.predicate"


def test_every_dependency_is_locked_to_one_version() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_what_security_md_names_is_there() -> None:
    named = re.findall(r"`((?:tests|deploy)/[\w./-]*)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
