"""The same release on a fleet: each target is built by a worker of its work pool.

Call `release_on_workers(request, store, reporter)`. Imports flows.release, never flows.refresh.
"""
