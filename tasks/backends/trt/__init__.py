"""TensorRT and TensorRT for RTX: one code path, with the vendor's module as a parameter.

Reached through `BACKENDS`. The vendor's package is imported inside functions: listing backends must not load CUDA.
"""
