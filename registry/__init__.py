"""The thin part of Enginery: what a serving host installs to fetch and verify engines."""

import os

# Read when mlflow is imported, by any module here: nothing is reported, no progress bars, no git lookups.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for JSON
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
