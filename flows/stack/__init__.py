"""A team's whole stack on one host: PostgreSQL, MLflow, Prefect and workers as processes.

Call `start_stack(…)` and `stop_stack(…)`. Imports flows.prefect_server and flows.inputs only.
"""
