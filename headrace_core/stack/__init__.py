"""The local stack: real NATS, real Postgres and the services as child processes.

`headrace dev` and the tests are the two users. Nothing here runs in production.
"""
