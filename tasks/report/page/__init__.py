"""The report of a release as one HTML page, and the same as JSON.

Call `describe_release` for the JSON, and `render_page` for the page of it. Pure functions of values; nothing here reads
a registry.
"""
