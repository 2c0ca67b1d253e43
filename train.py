"""Train a model: `python train.py model=opt-1b3 method=sft language=pt`; it is `aira train`, from a clone."""

from aira.commands.train import main

if __name__ == "__main__":
    main()
