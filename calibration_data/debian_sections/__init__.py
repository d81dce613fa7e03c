"""The shipped sample: Debian package descriptions with their archive section, and the script that drew it."""
