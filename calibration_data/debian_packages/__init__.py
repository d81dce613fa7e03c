"""Entries of Debian packages with their maintainers' tags, and what six model tasks make of them."""
