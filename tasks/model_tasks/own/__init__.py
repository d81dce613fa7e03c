"""A task of the user's own: a Python file with `rows`, `preprocess`, `answers` and `score` (docs/adr/0034).

Call `open_module_task(file, axes)`. What a file declares is read without running it; its functions run when they are
called, in this process: whoever opens a task trusts its file.
"""
