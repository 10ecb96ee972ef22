"""Prediction of files of any size: as a stream, in parts that are kept, on one machine or many.

- :mod:`.jobs` says what is to be written, and of which parts of which files it is made.
- :mod:`.stream` reads, prepares and tags jets side by side, with as much memory as a few chunks.
- :mod:`.parts` keeps what is finished in a hidden folder beside the output, until all of it is.
- :mod:`.files` puts these together: ``jetzoo.predict_files``.
"""
