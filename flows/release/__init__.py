"""The release of one recipe on this machine, from the checkpoint to published versions.

Call `release_engines(context, fleet, release)`; the stages it runs are in stages.py, graphs.py, engines.py,
measuring.py and scoring.py; reporting.py writes the report. Nothing here knows work pools or workers.
"""
