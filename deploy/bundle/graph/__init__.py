"""Reading the graphs of a bundle that nobody trusts yet, before ONNX Runtime sees them."""
