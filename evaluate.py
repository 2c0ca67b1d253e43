"""Measure models: `python evaluate.py model.path=<run>/export eval=aira-en`; it is `aira evaluate`, from a clone."""

from aira.commands.evaluate import main

if __name__ == "__main__":
    main()
