"""Tasks whose rows are texts, read by the checkpoint's tokenizer.json; `text_task.py` is what they share."""
