"""Explanation methods as pure functions of arrays."""
