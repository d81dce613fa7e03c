"""Measure the answers and the latency of engines, each in a fresh process.

Call `evaluate_engine` and `measure_latency`; `measurements.py` turns both into measurements with intervals,
`row_results.py` into what is kept of each row.
"""
