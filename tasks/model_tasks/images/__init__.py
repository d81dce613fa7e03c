"""The tasks whose rows are image files, read by the checkpoint's preprocessor_config.json."""
