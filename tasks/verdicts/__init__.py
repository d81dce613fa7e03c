"""From figures to verdicts: gates, intervals, a candidate against production. Absence fails.

Call `judge(measurements, limits, …)`. Imports numpy, scipy and the registry's values only: no I/O.
"""
