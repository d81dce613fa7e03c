"""The thin part of Enginery: what a serving host installs to fetch and verify engines."""
