#!/usr/bin/env python3
"""Print the number of parameters of every network, with the 17 features and 10 classes of JetClass.

The column of the README's table comes from here.
"""

from pathlib import Path

from jetzoo import zoo

NETWORKS = Path(__file__).resolve().parent.parent / "networks"


def main():
    data_config = zoo.read_data_config("JetClass/JetClass_full")
    for path in sorted(NETWORKS.glob("*.py")):
        model, _ = zoo.network_module(path).get_model(data_config)
        print(f"{path.stem:<14} {sum(p.numel() for p in model.parameters()):>9,}")


if __name__ == "__main__":
    main()
