"""What a release hands to a flow of Prefect is not kept there."""

from calibration_data.reader import Rows
from flows.release.build_target import build_engines
from flows.release.context import Unshown


def test_prefect_keeps_no_row_of_a_dataset() -> None:
    rows = Rows(("a customer's text",) * 100_000, (0,) * 100_000, None, 0, "d" * 64)
    kept = build_engines.serialize_parameters({"artifacts": Unshown(rows)})
    assert kept == {"artifacts": "<Unshown>"}
