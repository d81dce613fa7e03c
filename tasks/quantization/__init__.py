"""The ONNX graph of each precision, and how much of it stays in fp32.

Call `quantize(onnx, precision, rows, …)`; `METHODS` maps a precision to its function. Never imports a builder backend.
"""
