"""The client's side: a Flower ClientApp around a NumPyClient that trains the subnet it is sent."""
