"""Dashboards and rules: what they ask for exists, and Prometheus reads it."""
