r"""One file a likelihood; `method.py` says what one is."""
