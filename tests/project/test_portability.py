"""Tests that may be skipped without a C compiler: those of the compiled code itself, by name.

Everything else must pass without one; torch then runs the same computations. Modules of
``tests/faults`` watch programs from below, through a library that they compile.
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: Modules whose every test runs compiled code; ``test_lowering`` and the sweeps test the fallback.
WHOLE_MODULES = {
    "faults/test_killed_jobs.py",
    "faults/test_killed_workers.py",
    "faults/test_power_cut_of_sweeps.py",
    "faults/test_power_cuts.py",
    "incremental/test_program.py",
    "incremental/test_series.py",
}
SINGLE_TESTS = {
    "test_spike_driven_convolution",
    "test_results_do_not_depend_on_threads",
    "test_dense_inputs_use_the_dense_convolution",
    "test_a_library_writable_by_others_is_not_loaded",
}


def test_only_tests_of_compiled_code_need_a_compiler() -> None:
    modules, single = set(), set()
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and "no C compiler" in ast.unparse(node):
                if ast.unparse(node.targets[0]) == "pytestmark":
                    modules.add(str(path.relative_to(TESTS)))
            elif isinstance(node, ast.FunctionDef):
                marks = map(ast.unparse, node.decorator_list)
                if any("needs_compiler" in mark for mark in marks):
                    single.add(node.name)
    assert modules == WHOLE_MODULES
    assert single == SINGLE_TESTS
