"""How stages run: found by their key, made whole or not at all, in processes of their own.

Call `run_stage(workspace, step)`. steps.py is the one module of tasks/ that imports Prefect.
"""
