"""TODO: flows/prefect_server/settings.py."""

import os

# How often a flow run is heard of, which prefect.yaml sets for every run; Prefect takes no less.
BEAT_SECONDS = 30


# What the automations of flows/prefect_server/setup.py watch carries it; prefect.yaml gives it to every deployment.
WATCHED_TAG = "enginery"


# A Prefect server whose database restarts answers 500, which its client takes for the last word: a job that was done
# would be called Crashed. With this the client asks again for a minute, as it does where no server answers.
PATIENT = {"PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}


# What every flow run finds in its environment; prefect.yaml says the same.
RUN_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_SECONDS), **PATIENT}


def be_patient() -> None:
    """Have this process and those that it starts be `PATIENT`, unless its environment says otherwise."""
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)
