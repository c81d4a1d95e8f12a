"""What a step, an evaluation and a run are: plain values, their formulas and their JSON form.

Nothing here writes a file or a series, or knows who does.
"""
