"""What `services.common` promises, without a server."""
