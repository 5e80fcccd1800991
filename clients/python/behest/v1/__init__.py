"""The generated contract behest.v1. Imports nothing: name the module you need."""
