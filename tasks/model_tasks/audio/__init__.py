"""The tasks whose rows are audio files, read by the checkpoint's preprocessor_config.json."""
