"""Pictures of what the policy saw and did, with OpenCV; no ROS."""
