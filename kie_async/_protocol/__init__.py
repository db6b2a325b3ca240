"""The service's protocol as pure rules and values: no event loop, no socket, no file."""
