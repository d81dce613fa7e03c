"""One module per Hugging Face task: rows to feeds, outputs to answers, answers to scores.

Call `model_task(name)`. Never imports a backend or opens a session: who calls it runs the engine.
"""
