"""Prefect flows, the recipe format and the command line."""
