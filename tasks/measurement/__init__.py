"""What an engine answers and how long it takes, each measured in a fresh process.

Call `evaluate_engine` and `measure_latency`; `measurements.py` turns both into figures with intervals.
"""
