"""Several processes that serve one dashboard.

    supervisor        starts them on one socket, starts another where one has ended, and ends all
    shared_inspector  the one process with a model, which all of them ask through the supervisor

A worker is `moe-megatron dashboard` with the same words, which is given the socket. What workers
must know together is in the database (who may look, and who guesses) and, with Redis, the news of
runs, in `sharing`; ids of runs are made of their paths, and so are the same everywhere.
"""
