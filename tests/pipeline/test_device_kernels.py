"""Device kernels: they compile for the GPUs that they are meant for, which Triton's interpreter does not show."""

import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="kernels for a GPU need the package triton")

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

import pipeline.device_kernels as kernels

GPU = GPUTarget("cuda", 80, 32)
TEXT = {"window_stride": "i64", "token_stride": "i32", "lengths": "*i32", "n_neurons": "i32"}
SUMS = {"parts": "*fp64", "exponents": "*i32"}
SLOTS = {"keys": "*i64", "n_slots": "i32", "block": 8, "sign": -1}
KERNELS = {
    "draw": {
        "windows": "*i64", "neurons": "*i64", "listed": "*i32", "starts": "*i32", "n_neurons": "i32", "n_slots": "i32",
        "priorities": "*i64", "chosen": "*i64", "block": 16, "width": 8, "tile": 32,
    },
    "measure": {
        **TEXT, **SUMS, "is_open": "*i32", "numbers": "*i32", "n_windows": "i32", "per_share": "i32", "per_unit": "*fp32",
        "most_steps": "fp64", "low": "*fp32", "high": "*fp32", "extremes": "*fp32", "positive": "*i64", "early": "*fp32",
        "n_early": "i32", "faults": "*i8", "alarm": "*i32", "token_stride": 3072, "signed": True, "held": 64, "block": 32,
    },
    "add_shares": {
        "share_parts": "*fp64", "share_exponents": "*i32", "n_shares": "i32", "n_neurons": "i32", **SUMS, "block": 128,
    },
    "offer": {
        **SLOTS, "extremes": "*fp32", "windows": "*i32", "listed": "*i32", "members": "*i32", "starts": "*i32",
        "n_neurons": "i32", "width": 32, "tile": 128,
    },
    "keep": {
        **TEXT, **SLOTS, "places": "*i32", "n_all": "i32", "longest": "i32", "low": "*fp32", "high": "*fp32",
        "peaks": "*fp32", "steps": "*i16", "exponents": "*i16", "block": 32, "tile": 64,
    },
    "add_tokens": {
        **TEXT, "occurrences": "*i64", "segments": "*i32", "n_tokens": "i32", "per_unit": "*fp32", "lower": "*i32",
        "upper": "*i32", "block": 1024, "at_once": 4,
    },
    "count_in_bins": {**TEXT, "sampled": "*i32", "n_bins": "i32", "histogram": "*i32", "block": 128, "at_once": 8},
}
for name, types in KERNELS.items():
    kernel = getattr(kernels, name)
    for x in ("*bf16", "*fp32") if "x" in kernel.arg_names else ("",):
        given = {argument: {"x": x, **types}[argument] for argument in kernel.arg_names}
        constants = {(place,): value for place, value in enumerate(given.values()) if not isinstance(value, str)}
        signature = {argument: t if isinstance(t, str) else "constexpr" for argument, t in given.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = compile(source, target=GPU, options={"enable_fp_fusion": False})
        print(name, x, "cubin" in made.asm, made.metadata.shared)
"""


def test_every_kernel_compiles(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILED], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert all(" True " in line for line in lines)
