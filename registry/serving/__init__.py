"""What a serving host does: resolve an alias, check, download, verify, place and follow.

Call `fetch(store, …)` or `watch(…)`. Never imports registry.mlflow: any `ServingStore` will do.
"""
