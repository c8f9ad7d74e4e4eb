"""A simulated robot and its episodes: Meta-World's arm in MuJoCo, without ROS."""
