"""The data sets that the package carries, each in a folder with the script that built it."""
