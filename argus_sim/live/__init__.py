"""The live host: the serving core behind an HTTP server, with real or emulated workers."""
