"""What one architecture has that another has not: prompt, rows of the sequence, what is read, what makes an action."""
