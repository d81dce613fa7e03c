"""The subcommands of `enginery`, grouped by what a user does with them; flows/cli.py registers them.

Each is a typer function that asks one function below and prints its answer. No other folder imports this one.
"""
