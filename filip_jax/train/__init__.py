"""The one trainer and its parts."""
