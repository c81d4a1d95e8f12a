"""Plain values that describe a step, an evaluation and a run, with their formulas and JSON form.

Nothing here writes a file or a series, or knows who does.
"""
