"""Find stale engines, release their recipes again, and promote what is proven.

Call `refresh_recipes(request, store, toolchains, release)`. Which engines are stale is decided in staleness.py, which
reads nothing.
"""
