"""The inference service: the Flask app of a pod, the models it serves, and `engine/`, which computes them.

May import `services.web` and `services.common`, never the gateway: they meet on the wire. torch is imported only below
`engine/`, and there only once a model is loaded, so that the pod answers its probes from the first second.
"""
