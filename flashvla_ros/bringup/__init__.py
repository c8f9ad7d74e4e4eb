"""The processes of a demo or a robot, what is heard of them, and the terminal."""
