"""What it costs to send one frame to every viewer: our server and its peers at the same work on one machine."""
