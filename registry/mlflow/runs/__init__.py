"""What people compare in MLflow: the run of a release, a nested run per engine, files of both.

Call `ReleaseLog(store)`.
"""
