"""The ResNet family: SuperFedNAS's space and its relatives."""
