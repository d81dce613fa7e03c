"""ONNX Runtime on the CPU and on any NVIDIA GPU: the engine is the ONNX graph itself, in one file.

Reached through `BACKENDS`. The vendor's package is imported inside functions: listing backends must not load it.
"""
