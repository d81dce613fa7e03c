"""ONNX graphs as files: export, their layers, external data, exact sessions.

Call `export_checkpoint(source, into=…)`. Never imports calibration, quantization or a backend.
"""
