"""One command for the first GPU: what works on this machine and how fast, in a dated folder.

    python -m benchmarks.gpu_report

`stages.py` lists what is run, `runner.py` runs it within limits of time, `report.py` writes JSON
and a table. What fails is a row of the table and keeps nothing else from running.
"""
