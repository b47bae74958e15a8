"""Channels: how they flow, which are dead, and cutting, folding and widening them, for PyTorch and ONNX graphs."""
