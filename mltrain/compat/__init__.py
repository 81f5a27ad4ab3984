"""Private parts of MLflow and its libraries that mltrain uses.

Importing this package gives those libraries separate random generators, so every package that imports MLflow imports it.
"""

from mltrain.compat import own_random

own_random.install()
