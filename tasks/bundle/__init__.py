"""Make the bundle that is published: engine, tokenizer, manifest, ML-BOM and warm-up rows in one signed folder.

Call `assemble_bundle`, then `seal_bundle`. The registry uploads it.
"""
