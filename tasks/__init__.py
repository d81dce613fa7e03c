"""Plain typed functions that make, measure and judge engines; only steps.py knows Prefect."""
