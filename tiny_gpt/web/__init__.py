"""A small web server of one's own machine: what `serve`, `play` and `watch` share. Knows nothing about models.

access.py decides who may ask, app.py makes an ASGI application that asks it first, server.py runs one and stops it,
connection.py gives connections time limits, listener.py finds a port, browser.py opens a page.
"""
