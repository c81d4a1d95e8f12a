"""Where the time of a run went: attempts from its journal, steps from metrics.jsonl, one account.

`account.account` defines goodput and every kind of lost time, for `moe-megatron uptime`, the
exporter and dashboards.
"""
