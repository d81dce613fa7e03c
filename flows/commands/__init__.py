"""The subcommands of `enginery`, grouped by what a user does with them; flows/cli.py registers them."""
