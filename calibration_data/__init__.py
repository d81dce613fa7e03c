"""Sample data shipped with the project, and the script that draws it."""
