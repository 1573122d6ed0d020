"""The HTTP edge that gateway and inference service share: one way to answer errors, to log a request, to serve metrics.

Imports Flask and `services.common`; knows neither of the two services.
"""
