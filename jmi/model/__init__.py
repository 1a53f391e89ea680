"""What a model is: its architecture, its sites and what it reads."""
