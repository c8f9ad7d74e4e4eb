"""What every command of ``flashvla-ros`` shares: overrides, results, fan-out, exit codes."""
