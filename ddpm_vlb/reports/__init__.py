r"""Reports; `schema.py` says what one holds."""
