"""Trained generators in files that run without fastgan: ONNX, and PyTorch's .pt2. Imports nothing itself."""
