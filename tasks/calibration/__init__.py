"""What a graph's tensors hold on real rows, collected in one streaming pass in flat memory.

Call `collect(…)`. Never imports quantization: it counts, and decides nothing.
"""
