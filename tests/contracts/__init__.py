"""What every implementation of a port must hold."""
