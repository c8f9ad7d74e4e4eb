"""A policy that runs elsewhere, behind the same port; and ours, served. The protocol is openpi's."""
