"""The playground: a page on which a person writes with their model and sees how it thinks.

snapshots.py finds and keeps the models, tokens.py makes and scores tokens, inside.py looks into the network, routes.py
gives all of it to the page in static/, which is plain JavaScript modules without a build step.
"""
