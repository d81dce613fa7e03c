"""A Triton model repository from verified bundles, and Triton's model control API.

Call `place_triton(…)`. Never imports registry.mlflow.
"""
