"""This host: its GPU, its home folder, its processes, durable files, and which engines load here.

Never imports MLflow, promotion or serving.
"""
