"""The report of a release: its rows, its table, its JSON and its plots.

Pure functions of values; nothing here reads a registry.
"""
