"""Comparisons that a converted model must pass before its folder is published."""
