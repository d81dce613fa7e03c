"""What a model reads, made of what a row holds: texts, words, questions with their context, images, audio.

Each module has an encoder and a function that opens it from a checkpoint's or bundle's own files. Serving hosts open
them too: nothing here imports torch or transformers.
"""
