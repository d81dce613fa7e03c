"""What people compare in MLflow: a run per release, a nested run per engine, and the files of both.

Call `ReleaseLog(store)` to write them, `Lineage(store)` to read them, `RunFiles(store)` to exchange files by them.
"""
