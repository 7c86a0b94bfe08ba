"""What people look at, made from one list: Grafana dashboards, and the metrics in the runbook.

`python -m deploy.pages` writes them; a test says when that was forgotten.
"""
