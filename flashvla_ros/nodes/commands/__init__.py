"""Actions as ROS messages: which dimension goes where, checked once before anything moves."""

from flashvla_ros.nodes.commands.encoder import COMMAND_TYPES, Command, Encoder, make_encoder

__all__ = ["COMMAND_TYPES", "Command", "Encoder", "make_encoder"]
