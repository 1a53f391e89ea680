"""How the facts are said in the training text: parts of sentences as data, and their composition."""
