"""Verdicts from measurements: gates, intervals, and a candidate against production.

Call `judge(measurements, limits, …)`. A missing measurement never passes. Imports numpy, scipy and the registry's
values only, and does no I/O.
"""
