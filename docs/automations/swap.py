"""An example: swap the engine on a serving host when its production alias moves.

    prefect work-pool create serving-l4 --type process
    prefect deploy docs/automations/swap.py:swap_engine --name l4 --pool serving-l4

A worker of that pool runs on the serving host. `enginery triton watch` does the same by polling, without Prefect.
"""

import subprocess

from prefect import flow


@flow(name="swap-engine")
def swap_engine(model: str, target: str, models: str = "/models") -> None:
    """Fetch and verify the engine at `production-<target>`, and load it on the server."""
    command = ["enginery", "triton", "fetch", model, "--target", target, "--to", models]
    subprocess.run([*command, "--server", "localhost:8001"], check=True)
