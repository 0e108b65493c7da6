"""Whole policies of benchmarks/tried, some of each kind: exported, and their steps are JAX's at the edges too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("flax")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from tried import layers, operations, policies
    from tried.export_all import attempt
finally:
    sys.path.pop(0)

CASES = {case.name: case for case in (*policies.CASES, *layers.CASES, *operations.CASES)}
NAMES = [
    "equinox attention over a history, with a mask",
    "motion clip, between frames by a phase in the carry",
    "running mean and std in the carry",
    "mixture of experts by top_k and eqx.filter_vmap",
    "ring of actions, its index in the carry",
    "phases with a countdown, lax.cond",
    "eqx.nn.RotaryPositionalEmbedding",
    "jnp.interp(left=, right=)",
    "jax.vmap of lax.dynamic_slice",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_works(name):
    found = attempt(CASES[name])
    assert found.works, found.said


def test_every_name_of_the_table_is_there_once():
    assert len(CASES) == len(policies.CASES) + len(layers.CASES) + len(operations.CASES)
