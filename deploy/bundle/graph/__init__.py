"""Reads graphs that nobody vouches for, before ONNX Runtime sees them. `read_graphs` is the one door to it."""

from deploy.bundle.graph.check import CARRY, GraphFacts, known_inputs, read_graphs
from deploy.bundle.graph.shapes import RULES

# the operators that it lets through
OPERATORS = frozenset(RULES)

__all__ = ["CARRY", "OPERATORS", "GraphFacts", "known_inputs", "read_graphs"]
