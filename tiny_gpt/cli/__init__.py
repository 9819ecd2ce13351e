"""The command line. main.py dispatches to one file per command; the rest is shared by several of them.

Every module that `tiny-gpt --help` needs starts without torch and numpy: what computes is imported in the function
that uses it.
"""
