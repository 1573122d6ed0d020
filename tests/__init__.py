"""The tests, arranged like the code: `unit` needs no server of ours, `integration` one real service, `e2e` the whole
stack; `chart` renders the chart, `cluster` runs it and the images.
"""
