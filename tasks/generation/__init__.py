"""Models that write text with several graphs, token by token: see docs/adr/0035-engines-of-parts.md.

Nothing outside of this room and of tasks/backends knows that an engine has parts.
"""
