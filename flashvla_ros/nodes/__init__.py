"""The ROS side: nodes, their parameters, topics and messages. Nothing but the command line imports it."""
