"""Grafana dashboards, Prometheus rules and their servers, as code that writes the files.

`artifacts` names every file, one module makes each dashboard, `check` holds them to the catalog of
metrics, `push` and `local_prometheus` bring them to servers. Nothing here loads torch.
"""
