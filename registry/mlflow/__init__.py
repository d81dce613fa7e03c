"""The registry on MLflow: the one package that imports mlflow.

Call `open_store()`; everything else is reached through the `Store` that it returns.
"""

import os

# Read when mlflow is imported, by any module of this package: nothing is reported, no progress bars, no git lookups.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for JSON
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
