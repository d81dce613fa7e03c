"""The registry on MLflow: the one package that imports mlflow.

Call `connect.open_store()`, and use the `Store` that it returns. Never imports Prefect, tasks or flows.
"""

import os

# Set before any module of this package imports mlflow: no telemetry, no progress bars, no git lookups.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for JSON
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
