"""What prefect.yaml deploys, in a checkout whose own file is not there."""

from prefect import flow


@flow(name="refresh-engines")
def refresh_engines(
    recipes: list[str] | None = None, fleet: str = "recipes/fleet.yaml", dry_run: bool = False, full: bool = False
) -> None: ...
