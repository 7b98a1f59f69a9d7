"""Trained generators as files that run without fastgan: ONNX, and PyTorch's .pt2.

- `tracing`: a generator as one graph of plain PyTorch operations.
- `formats`: the files that hold the graph.
"""
