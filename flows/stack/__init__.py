"""A team's whole stack on one host: PostgreSQL, MLflow, Prefect and workers as processes.

Call `up(…)` and `down(…)`. Imports flows.prefect_server and flows.inputs only.
"""
