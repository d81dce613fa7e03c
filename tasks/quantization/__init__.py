"""The ONNX graph of each precision, and how much of it stays in float.

Call `quantize(onnx, precision, rows, …)`; one mapping from precision to function. Never imports a builder backend.
"""
