"""Statistics of a graph's tensors on real rows, collected in one streaming pass in flat memory.

Call `calibrate(graph_file, rows, …)`. Never imports quantization: it counts, and decides nothing.
"""
