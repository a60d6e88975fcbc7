"""What the services of the package share: their socket, their token and their connections."""
