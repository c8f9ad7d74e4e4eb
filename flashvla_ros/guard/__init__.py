"""The process that outlives the policy: passes its commands on, or stops the robot. Its rules know no ROS."""
