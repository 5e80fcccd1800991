"""The services of a daemon, a file each: thin, typed calls that return the messages of the contract."""
