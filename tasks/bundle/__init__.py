"""What is published: engine, tokenizer, manifest, bill of materials and warm-up rows in one signed folder.

Call `assemble_bundle`, then `seal_bundle`. Uploading is the registry's.
"""
