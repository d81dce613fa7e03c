"""The picture of a calibration: the tensors whose layers err most, and how far their outliers lie."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display on a worker

import matplotlib.pyplot as plt

from tasks.calibration_table import CalibrationTable

WORST = 12
_NAME_LENGTH = 48


def worst_tensors(table: CalibrationTable, file: Path) -> Path:
    """Bars of relative error for the WORST tensors, beside largest |x| over what 99.9 % stay below."""
    worst = sorted(table.ranges, key=lambda each: each.error)[-WORST:]
    names = [f"…{each.tensor[-_NAME_LENGTH:]}" if len(each.tensor) > _NAME_LENGTH else each.tensor for each in worst]
    figure, (errors, outliers) = plt.subplots(
        1, 2, figsize=(11, 0.4 * len(worst) + 1.6), sharey=True, layout="constrained"
    )
    errors.barh(names, [max(each.error, 1e-12) for each in worst])
    errors.set(xscale="log", xlabel="relative squared error of the layers that read it (log)")
    outliers.barh(names, [each.amax / each.typical if each.typical else 0.0 for each in worst], color="C1")
    outliers.set(xlabel="largest |x| over its 99.9th percentile")
    figure.suptitle(f"worst of {len(table.ranges)} tensors, {table.rows} rows, {len(table.quarantined)} quarantined")
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
