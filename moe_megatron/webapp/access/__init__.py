"""Who may look at a dashboard, and who may ask something of a run.

    database      where it is kept: a SQLite file, or a PostgreSQL server
    tokens        access tokens, each with a name and a role
    sessions      what a browser has for a token that was pasted into the page
    audit         who did what, and what came of it
    wrong_tokens  whoever guesses is made to wait
    visitors      who somebody is, by what a request brings
    gate          stands before all requests; `login` is where a browser gets its session

It knows neither runs nor what is answered.
"""
