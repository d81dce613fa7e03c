"""Where the files of runs and versions are: a folder, an HTTP server, or any artifact store that MLflow knows.

Call `artifacts.open_files` and `artifacts.upload`; `folder` and `http` import no mlflow. Never imports the rest of
registry.mlflow.
"""
