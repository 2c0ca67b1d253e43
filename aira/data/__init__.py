"""From rows of a source to the rows of tokens that a model reads."""
