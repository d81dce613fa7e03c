"""Promote engines and roll them back by moving production aliases, with a record of each decision.

Call `promote` and `rollback`; rules.py decides, and only moves.py moves a production alias. Never imports MLflow.
"""
