"""Plain typed functions that make, measure and judge engines, a folder per subject.

Call the function of a folder that its own docstring names. Never imports flows or MLflow; only tasks.execution.steps
imports Prefect.
"""
