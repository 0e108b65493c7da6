"""The live view: a page in a browser, served by a process of its own."""
