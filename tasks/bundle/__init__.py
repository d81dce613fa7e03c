"""Make the bundle that is published: engine, tokenizer, manifest, ML-BOM, warm-up rows and golden inputs in one folder.

Call `assemble_bundle`, then `seal_bundle`. The registry uploads it. A serving host calls `answer` and `check_golden`.
"""
