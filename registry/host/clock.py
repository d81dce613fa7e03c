"""The clock at the edge: what decides takes the time as a value."""

import datetime


def now() -> datetime.datetime:
    """Return the present time in UTC."""
    return datetime.datetime.now(datetime.UTC)
