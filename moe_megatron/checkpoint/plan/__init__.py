"""From two sides and links to a plan: tasks that each fill one range of one file.

Plans are made from headers alone, and prove that nothing is lost or read twice.
"""
