"""Think twice: run the model, or act again?"""
