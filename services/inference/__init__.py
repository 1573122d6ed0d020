"""The inference service: the Flask app of a pod, the models it serves, and `engine/`, which computes them.

`api` takes a request, `parameters` reads how to sample, `chat` makes token ids of it, `submit` hands it to the engine,
`answers` and `logprobs` make bodies and frames of what comes back, `disconnect` notices a client that left. `models`
holds what the `catalogue` names, within memory; `prepare` gets it ready before a start. `calls` keeps each call's
counts for the gateway, `load` tells it how full the pod is. `app` makes the application, `gunicorn_conf` runs it, and
`watchdog` logs why a pod hangs.

May import `services.web` and `services.common`, never the gateway: they meet on the wire. torch is imported only below
`engine/`, and there only once a model is loaded, so that the pod answers its probes from the first second.
"""
