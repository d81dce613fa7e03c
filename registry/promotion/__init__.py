"""Move a production alias: who may, when, and the record that is written first.

Call `promote` and `rollback`; rules.py decides, moves.py is the one place that moves an alias. Never imports MLflow.
"""
