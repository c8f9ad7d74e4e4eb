"""What a control step is made of: types, settings, errors. Standard library and NumPy only."""
