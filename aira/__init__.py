"""Aira: aligning small language models, from one command."""

__version__ = "0.3.0"
