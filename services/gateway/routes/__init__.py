"""HTTP routes, one blueprint a module: they read a request, call one thing, and shape its answer. No decisions here."""
