"""Everything about a Prefect server: settings, reachability, work pools, automations, deployments file and pages.

Nothing here imports a release, a refresh or a worker.
"""
