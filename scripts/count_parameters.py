#!/usr/bin/env python3
"""Print the number of parameters of every network, with the 17 features and 10 classes of JetClass.

The column of the README's table comes from here.
"""

from jetzoo import repository
from jetzoo.tagger import untrained


def main():
    """Print a line for each network."""
    for name in repository.networks():
        model = untrained(name, "JetClass/JetClass_full", "cpu").model
        print(f"{name:<14} {sum(p.numel() for p in model.parameters()):>9,}")


if __name__ == "__main__":
    main()
