"""Methods to compare with, through libraries that others keep or in a few lines of linear algebra."""
