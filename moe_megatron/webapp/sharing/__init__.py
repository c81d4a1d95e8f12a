"""What several processes of a dashboard share through a Redis server: the news of each run.

    address   where the server is, and the password that never stands on a command line
    message   news as bytes, checked before anything is believed
    sharing   who reads a run, and what the others get; without Redis, everybody reads

A run is read by one process, whichever has the run's lock; it puts the newest news into one value
that expires, and the others take it from there. Nothing else is in Redis.
"""
