"""The part of Enginery that a serving host installs: fetch, verify and promote engines.

Never imports torch, onnx, Prefect or a backend; only registry.mlflow imports mlflow.
"""
