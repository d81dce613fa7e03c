"""The Prefect settings that flow runs, workers, automations and prefect.yaml share."""

import os

# How often every flow run sends a heartbeat, as prefect.yaml sets it; Prefect allows no less.
BEAT_SECONDS = 30
# The automations of flows/prefect_server/setup.py watch the runs with this tag; prefect.yaml tags every deployment.
WATCHED_TAG = "enginery"
# A Prefect server whose database restarts answers 500, which its client does not retry: a job that was done would be
# called Crashed. With this the client retries for a minute, as it does where no server answers.
RETRIES = {"PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}
# The environment of every flow run; prefect.yaml has the same values.
RUN_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_SECONDS), **RETRIES}


def retry_server_errors() -> None:
    """Set `RETRIES` for this process and those it starts, where the environment does not set them already."""
    for name, value in RETRIES.items():
        os.environ.setdefault(name, value)
