"""How the daemon and remote processes speak: connections that are dialled, streams of those that attach, addresses."""
