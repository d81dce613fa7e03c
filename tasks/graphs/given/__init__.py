"""Graphs that a user has already, named in a recipe as `source.onnx`: hostile until checked, then made like an export.

Call `copy_graph`, `run_admission`. Never imports calibration, quantization or a backend.
"""
