r"""What is scored: a network, the terms of its bound, and its steps."""
