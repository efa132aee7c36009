"""What is tested: random models as data, their weights and inputs, each rebuilt bit for bit from its id."""
