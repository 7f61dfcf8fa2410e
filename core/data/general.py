"""General text that every machine has: the documentation inside Python's own standard library.

A model that has read only one company's files does not know English. The docstrings of the standard library and the
language reference in `pydoc_data.topics` are about two megabytes of edited English prose, present wherever Python is, so
nothing is downloaded. They are read with `ast`, never imported: no module's code runs. The list of files is fixed, so that the
same Python gives the same text; a module that a Python version lacks is skipped and counted.
"""

from __future__ import annotations
