"""Checkpoints from a hub, a folder, a package or a Python module: safetensors only, checked, pinned and hashed.

Call `from_hub`, `from_folder`, `from_package` or `from_module`; each returns `SourceFiles`. Never imports a backend.
"""
