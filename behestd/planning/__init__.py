"""Turns settings into the parts of a daemon. Reads secrets; opens and awaits nothing."""
