"""A serving host's path: resolve an alias, check, download, verify, place, follow.

Call `fetch(store, …)` or `watch(…)`. Never imports registry.mlflow: any `ServingStore` will do.
"""
