"""The thin part of Enginery: what a serving host installs to fetch, verify and promote engines.

Never imports torch, onnx, Prefect or a backend; only registry.mlflow imports mlflow.
"""
