"""GraphModules: a ``torch.fx.GraphModule`` from the nodes of a graph, PyTorch's or ONNX's."""
