"""Run stages: found by their key, else made, whole or not at all; vendor code runs in processes of its own.

Call `run_stage(workspace, step)`. steps.py is the only module of tasks/ that imports Prefect.
"""
