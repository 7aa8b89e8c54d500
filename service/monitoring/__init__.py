"""Prometheus' configuration and rules, and the Grafana dashboard as code."""
