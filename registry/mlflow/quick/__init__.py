"""Read the registry without importing mlflow, which alone takes 2 to 3 s.

Call `open.open_to_read()`. Never imports registry.mlflow.store, except to hand over what it cannot answer itself.
"""
