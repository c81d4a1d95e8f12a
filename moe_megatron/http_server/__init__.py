"""What servers of this package share: the socket, and by which names they may be reached."""
