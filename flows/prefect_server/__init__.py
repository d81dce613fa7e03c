"""Everything about a Prefect server: its settings, pools, deployments file, reachability and pages.

Nothing here imports a release, a refresh or a worker.
"""
