"""ROS messages to values and back: images and poses."""
