"""Tools in environments of their own: what needs other versions of packages than Enginery's own.

Call `run_tool(find_tool(name), script, folder)`. A tool is a folder of tools/: locked requirements, and scripts that
run with those packages in front of this environment's. Never imports what a tool installs.
"""
