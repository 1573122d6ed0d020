"""Images, chart and compose.yaml run for real, by podman: `make chart-run`."""
