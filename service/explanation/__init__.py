"""Explanations of answers, computed at low priority."""
