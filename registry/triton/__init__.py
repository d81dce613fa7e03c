"""Write a Triton model repository from verified bundles, and load it through Triton's control API.

Call `place_triton(…)`, then `load_version(…)`. Never imports registry.mlflow.
"""
