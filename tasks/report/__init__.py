"""What people look at: rows of a release, its table, its JSON and its pictures.

Pure functions of values; nothing here reads a registry.
"""
