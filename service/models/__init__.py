"""Loads, proves and keeps the models of the store."""
