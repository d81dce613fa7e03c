"""Prefect flows, the recipe format and the command line: what people start, in the order of its steps.

Call `flows.cli.main`, or a flow in `flows.deployments`. Nothing below imports this package.
"""
