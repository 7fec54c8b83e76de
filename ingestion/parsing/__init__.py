"""From any file to text: in a child process that may be slow, hungry or dead without harm."""

PARSING_VERSION = "3"
"""Changes with whatever changes the text of a file, so that documents are parsed anew."""
