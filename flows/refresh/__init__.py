"""Find the engines that have gone stale, release them again, promote what is proven.

Call `refresh_engines`. Whether an engine is stale is decided in staleness.py, which reads nothing.
"""
