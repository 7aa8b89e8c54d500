"""Locust's users on a running server: `python -m load_tests` starts them and judges what they measured."""
