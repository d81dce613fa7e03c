"""Promote and roll back by target names, with and without a person; tell Prefect what came of it.

Call `promote_targets(…)` or `roll_back_targets(…)`, and `compare_versions(…)` to see two engines side by side
before. The rules themselves are in registry/promotion.
"""
