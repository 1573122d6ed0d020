"""The HTTP edge that gateway and inference service share.

`edge` is one way to answer errors and to log a request, `serve` what their gunicorns have in common, the metrics' port
among it, `health` a container's probe. Imports Flask and `services.common`; knows neither of the two services.
"""
