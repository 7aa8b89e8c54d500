"""Measures of predictions with their intervals, calibration, thresholds, and what validation looked like."""
