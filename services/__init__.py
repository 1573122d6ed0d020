"""The deployable services: `gateway`, `inference` and `cache`, over `web` and `common` which they share."""
