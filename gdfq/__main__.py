"""``python -m gdfq``: the same as the ``gdfq`` command; ``torchrun -m gdfq`` needs it."""

from gdfq.cli import main

if __name__ == "__main__":
    main()
