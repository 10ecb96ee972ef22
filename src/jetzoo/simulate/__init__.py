"""Simulated jets in the published schemas and file layouts.

One module per data set holds its physics: `CLASSES`, whose keys are the labels it knows; `PATHS`,
the files of each split, with `{shard}` and, if the classes have files of their own, `{label}`; and
`simulate(label, num_jets, seed)`, which returns jets as they are to be stored. The row of the data
set in `jetzoo.datasets.CATALOGUE` names the module, and `jetzoo.datasets.simulation.generate` makes
the files of a data set with it.
"""
