"""Everything that talks to MLflow. No other package imports it."""
