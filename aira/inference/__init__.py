"""Answers and scores of a model that is there."""
