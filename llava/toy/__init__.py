"""The quickstart's own small world: drawn pictures, questions about them, and tiny base models that know its words."""
