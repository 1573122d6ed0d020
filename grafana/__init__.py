"""Dashboards, recording rules and alerts as code; `make dashboards` writes what Grafana and Prometheus read.

    config    what to tune: objectives, windows, where the runbooks are
    queries   the PromQL that rules and panels are put together from
    records   recorded series
    alerts    how an alert is put together
    faults    alerts on what is wrong now
    rules     the rule file, with the alerts on objectives
    panels    Grafana's JSON, as small functions
    overview  the dashboard "Service overview"
    gateway   the dashboard "Gateway"
    generate  writes the files

Imports nothing of the services; a test holds every metric named here against `services/common/metrics.py`.
"""
