"""The token inspector: a text, and the experts of each of its tokens, by a model of one's choice.

    call            what a browser sends, and what it is answered
    known_models    which models may be asked: of shown runs, and folders that were given
    inspector       one model at a time, kept while somebody asks it
    model_process   the process that has loaded it

The server loads no torch: `moe-megatron inspect --tokens` does, in a process of its own, which may
take long, run out of memory or be killed without harm to the dashboard or a training. A text is
neither kept nor logged.
"""
