"""The behest client. Imports nothing: name what you need, for example behest.client."""
