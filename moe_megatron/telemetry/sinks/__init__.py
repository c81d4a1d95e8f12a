"""Receivers of a run's records: the console, files of JSON lines, and the thread they run on."""
