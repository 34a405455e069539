"""The HTTP contracts of other tools, one file a tool. A new one is a file with `router(service)` and a row in `ROUTERS`.

Rewards are raw unless a request asks for an activation; `/classify` is shared by two tools, and told apart in `classify.py`.
"""
