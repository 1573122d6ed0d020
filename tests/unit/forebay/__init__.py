"""The operator's command without the services: restart arithmetic, ports, checks, small scripts as children."""
