"""The subcommands of `enginery`, by whom they serve; flows/cli.py lists them."""
