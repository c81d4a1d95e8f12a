"""Makes a plan from the headers of both sides and the links: tasks that fill ranges of files.

Making a plan reads only headers, and proves that nothing is lost or used twice.
"""
