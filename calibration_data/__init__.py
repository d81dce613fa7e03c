"""Rows for calibration and evaluation: read, checked, drawn as a sample; and the sample data with its script.

Call `draw_calibration_set` and `load_split` in `calibration_data.reader`. Never imports flows, Prefect or MLflow.
"""
