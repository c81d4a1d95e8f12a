"""The dashboard: a server that reads run folders, of runs that train or are long over.

    run_list        finds runs, and gives each an id
    run_reader      one run: its steps, its routing, its events and its log
    calls           what the page may ask of a run, one function a question
    asking          what an operator may ask a run for
    app, live_feed  HTTP and WebSockets
    news, sharing   what watchers are told, and how several processes share it
    workers         several processes that serve one address
    guards, access  which pages and names may ask; who may enter, where that is asked
    view            what an outsider adds: a name, a title and a function

It knows files and no training process, so training pays nothing for it, and it loads no torch. The
page itself is built from `frontend/`.
"""
