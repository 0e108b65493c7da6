"""Reads graphs that nobody vouches for, before ONNX Runtime sees them. `read_graphs` is the one door to it."""

from deploy.bundle.graph.check import CARRY, GraphFacts, known_inputs, read_graphs

__all__ = ["CARRY", "GraphFacts", "known_inputs", "read_graphs"]
