"""HTTP routes: they read a request, call one thing, and shape its answer. No decisions here.

`openai` and the deployment guide's (`guide`) go the way of a request, by `calls` in and out; `login` makes tokens,
`description` shows what there is, and `admin/` is for those who administer.
"""
