"""Everything that talks to MLflow. No other package imports it."""

from mltrain.tracking import own_random

own_random.install()
