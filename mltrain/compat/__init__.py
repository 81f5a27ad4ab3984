"""What mltrain relies on of MLflow and its libraries beyond their public interfaces.

Importing this package gives those libraries random numbers of their own, so every package that imports MLflow imports it.
"""

from mltrain.compat import own_random

own_random.install()
